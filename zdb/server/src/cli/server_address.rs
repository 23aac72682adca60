//! How a command reaches a server.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use zdb_client::{Client, Endpoint, Password, Timeouts};
use zdb_server::config::PORT;

/// A server, and who we are there.
#[derive(Args)]
pub(crate) struct ServerAddress {
    /// Host of the server
    #[arg(long, value_name = "HOST", default_value = "localhost")]
    host: String,
    /// Its port
    #[arg(long, value_name = "PORT", default_value_t = PORT)]
    port: u16,
    /// Its unix socket, instead of host and port
    #[arg(long, value_name = "PATH", conflicts_with_all = ["host", "port"])]
    socket: Option<PathBuf>,
    /// File with the administrator's password
    #[arg(long, value_name = "PATH")]
    admin_file: Option<PathBuf>,
}

impl ServerAddress {
    /// Where it is.
    pub(crate) fn endpoint(&self) -> Endpoint {
        match &self.socket {
            Some(path) => Endpoint::Unix(path.clone()),
            None => Endpoint::Tcp(self.host.clone(), self.port),
        }
    }

    /// The administrator's password, if one was given.
    pub(crate) fn admin(&self) -> anyhow::Result<Option<Password>> {
        self.admin_file.as_deref().map(read_password).transpose()
    }

    /// Connects, as administrator if there is a password.
    pub(crate) fn connect(&self) -> anyhow::Result<Client> {
        let mut client = Client::connect(&self.endpoint(), &Timeouts::default())?;
        if let Some(password) = self.admin()? {
            client.auth_secure(&password)?;
        }
        Ok(client)
    }
}

/// A password in a file, without the line's end.
pub(crate) fn read_password(path: &std::path::Path) -> anyhow::Result<Password> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(Password::new(text.trim_end_matches(['\r', '\n'])))
}
