//! A grid for one test.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hostd_grid::network::Network;

/// How long a grid may take to come up.
pub(crate) const START_TIME_MAX: Duration = Duration::from_secs(60);

/// A running grid; killed if a test ends without stopping it.
pub(crate) struct Grid(Child);

impl Drop for Grid {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Grid {
    /// Runs a grid in `dir` at any ports but `tls_port`, which 0 leaves open too, with `more` arguments.
    pub(crate) fn up(dir: &Path, tls_port: u16, more: &[&str]) -> (Self, Network) {
        let _ = std::fs::remove_file(dir.join("network.json"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_devgrid"));
        command.args(["up", "--port", "0", "--block-time-ms", "0", "--tls"]);
        command.arg("--tls-port").arg(tls_port.to_string());
        command.arg("--dir").arg(dir).args(more).stdout(Stdio::null());
        let grid = Self(command.spawn().unwrap());
        let end = Instant::now() + START_TIME_MAX;
        loop {
            if let Ok(bytes) = std::fs::read(dir.join("network.json")) {
                return (grid, Network::parse(&bytes).unwrap().network);
            }
            assert!(Instant::now() < end, "no network.json");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// SIGTERM, and how it ended.
    pub(crate) fn terminate(mut self) -> bool {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").arg(id).status().unwrap().success());
        self.0.wait().unwrap().success()
    }
}
