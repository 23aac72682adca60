//! A node of the grid: its parts, wired.
