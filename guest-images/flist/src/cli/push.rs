//! `flist push`: an image goes to a hub, or into a folder that is served as one.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use flist::hub::{self, PublicName, Token, User};

use super::terminal::Terminal;

/// Publish an image: upload it to a hub, or put it into a folder that a web server shows
#[derive(Args)]
#[command(
    visible_alias = "publish",
    after_help = "\
A hub's token is taken from FLIST_HUB_TOKEN, or else from --token-file.

In a folder, the image becomes FOLDER/USER/NAME, with NAME.md5 and NAME.json beside it and
FOLDER/api/flist/USER/NAME/light for those who ask as they ask a hub. Only the image is published:
its blocks must be in stores that its readers reach."
)]
pub(crate) struct PushArguments {
    /// The image
    image: PathBuf,
    /// https://HOST of a hub, or a folder
    target: String,
    /// Whose images these are; needed for a folder, on a hub it picks one of several accounts
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// The image's name; by default that of its file
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// A file that holds the hub's token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Send the token over plain HTTP
    #[arg(long)]
    insecure: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &PushArguments) -> anyhow::Result<()> {
    let progress = Terminal::new()?;
    let name = PublicName::new(&arguments.image, arguments.name.as_deref())?;
    let user = arguments.user.as_deref().map(User::new).transpose()?;
    let published = if arguments.target.contains("://") {
        let token = arguments.token()?;
        let (image, target) = (&arguments.image, &arguments.target);
        hub::push(image, target, &token, user.as_ref(), &name, arguments.insecure, &progress)?
    } else {
        let Some(user) = user else { bail!("--user NAME is needed to publish into a folder") };
        hub::publish(&arguments.image, Path::new(&arguments.target), &user, &name, &progress)?
    };
    progress.finish();
    println!("{}: {} bytes, md5 {}", published.name, published.size, published.md5);
    Ok(())
}

impl PushArguments {
    fn token(&self) -> anyhow::Result<Token> {
        if let Ok(token) = std::env::var("FLIST_HUB_TOKEN") {
            return Ok(Token::new(&token)?);
        }
        let Some(file) = &self.token_file else {
            bail!("a hub wants a token: FLIST_HUB_TOKEN or --token-file FILE");
        };
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        Ok(Token::new(&text)?)
    }
}
