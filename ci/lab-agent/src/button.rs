//! The power button, as Linux' input devices tell of it.
//!
//! A device gives records of 24 bytes (`struct input_event` of linux/input.h): two words of time, then
//! type, code and value.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::thread;

use anyhow::{Context, Result, ensure};

const EVENT_SIZE: usize = 24;
/// The type of keys, and the code and value of a power key that goes down.
const POWER_DOWN: [u8; 8] = [1, 0, 116, 0, 1, 0, 0, 0];

/// Waits until the button of any device is pressed.
pub(crate) fn wait() -> Result<()> {
    let entries = std::fs::read_dir("/dev/input").context("listing /dev/input")?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_device = |path: &PathBuf| path.to_string_lossy().starts_with("/dev/input/event");
    let paths: Vec<PathBuf> = paths.filter(is_device).collect();
    ensure!(!paths.is_empty(), "no input device");
    println!("await-button: {} devices", paths.len());
    let (sender, pressed) = channel();
    for path in paths {
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let sender = sender.clone();
        thread::spawn(move || drop(sender.send(read(file))));
    }
    drop(sender);
    pressed.recv().context("no device is left")?.context("reading an input device")?;
    println!("await-button: pressed");
    Ok(())
}

fn read(mut device: impl Read) -> std::io::Result<()> {
    let mut event = [0; EVENT_SIZE];
    loop {
        device.read_exact(&mut event)?;
        if event.ends_with(&POWER_DOWN) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_power_key_that_goes_down_counts() {
        let event = |tail: [u8; 8]| [&[9; 16][..], &tail].concat();
        let other = event([1, 0, 30, 0, 1, 0, 0, 0]);
        let up = event([1, 0, 116, 0, 0, 0, 0, 0]);
        assert!(read(&[&other[..], &up].concat()[..]).is_err());
        assert!(read(&[&other[..], &event(POWER_DOWN)].concat()[..]).is_ok());
    }
}
