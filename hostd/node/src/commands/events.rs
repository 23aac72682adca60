//! Owners ask to be told of changes: see [`crate::news`].
//!
//! `{"session": "", "seconds": 3600}`, both of which may be absent; the answer is `{"until": …}`.

use std::sync::Arc;

use bytes::Bytes;
use hostd_rmb::server::{Command, CommandError, Commands, Request, json as answer};
use serde_json::{Value, json};

use super::{optional, owner, question, wrong};
use crate::engine::Engine;
use crate::news::{News, SubscribeError};

pub(super) fn commands(commands: Commands, engine: &Arc<Engine>, news: &Arc<News>) -> Commands {
    let (engine, subscribing) = (Arc::clone(engine), Arc::clone(news));
    let subscribe = Command::new(move |request: Request| {
        let (engine, news) = (Arc::clone(&engine), Arc::clone(&subscribing));
        async move {
            let (twin, session) = (owner(&request), session(&request)?);
            let seconds = match optional(&request, "seconds")? {
                Value::Null => None,
                value => Some(value.as_i64().ok_or_else(|| wrong("seconds", "a number"))?),
            };
            if !engine.has_deployments(twin) {
                return Err(CommandError::new(SubscribeError::Stranger(twin)));
            }
            let until = news.subscribe(twin, &session, seconds).map_err(CommandError::new)?;
            answer(&json!({ "until": until }))
        }
    });
    commands.with("zos.event.subscribe", subscribe).with(
        "zos.event.unsubscribe",
        question(news, |news, request| {
            news.unsubscribe(owner(request), &session(request)?);
            Ok(Bytes::new())
        }),
    )
}

fn session(request: &Request) -> Result<String, CommandError> {
    match optional(request, "session")? {
        Value::Null => Ok(String::new()),
        Value::String(session) => Ok(session),
        _ => Err(wrong("session", "a text")),
    }
}
