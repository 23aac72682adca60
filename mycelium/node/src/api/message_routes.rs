//! HTTP paths about messages: send, receive, answer, and who may send what.
//!
//! As in existing daemons, to remove what is not there is no error, a source brings its topic with it, and
//! who asks for a topic's socket gets its path as a string, or null. Only one thing differs: a socket for a
//! topic without a rule is refused, where they say that it was set and do nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use mycelium_wire::identity::Subnet;
use mycelium_wire::message::MessageId;
use serde::Deserialize;

use super::Control;
use super::http::Node;
use super::types::{
    Base64, DefaultTopicAction, IdInfo, MessageInfo, MessageRequest, StatusInfo, base64,
    from_base64,
};
use crate::messages::mailbox::Answer;
use crate::messages::{PushError, TopicError, Topics};

/// These paths.
pub(super) fn routes() -> Router<Arc<dyn Control>> {
    Router::new()
        .route("/messages", get(receive).post(send))
        .route("/messages/reply/{id}", post(reply))
        .route("/messages/status/{id}", get(status))
        .route("/messages/topics/default", get(default_action).put(set_default_action))
        .route("/messages/topics", get(topics).post(add_topic))
        .route("/messages/topics/{topic}", delete(remove_topic))
        .route("/messages/topics/{topic}/sources", get(sources).post(add_source))
        .route("/messages/topics/{topic}/sources/{subnet}", delete(remove_source))
        .route(
            "/messages/topics/{topic}/forward",
            get(forward).put(set_forward).delete(remove_forward),
        )
}

/// Why a request about messages can't be met.
enum Refusal {
    Push(PushError),
    Topic(TopicError),
    NotBase64(String),
    Id(String),
    Subnet(String),
    UnknownMessage,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::Push(error @ (PushError::TooMany | PushError::TooManyBytes(_))) => {
                (StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            }
            Self::Push(error @ PushError::Random(_)) => {
                (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            }
            Self::Push(error) => (StatusCode::BAD_REQUEST, error.to_string()),
            Self::Topic(error @ TopicError::Unknown) => (StatusCode::NOT_FOUND, error.to_string()),
            Self::Topic(error) => (StatusCode::BAD_REQUEST, error.to_string()),
            Self::NotBase64(text) => (StatusCode::BAD_REQUEST, format!("{text:?} is not base64")),
            Self::Id(text) | Self::Subnet(text) => (StatusCode::BAD_REQUEST, text),
            Self::UnknownMessage => (StatusCode::NOT_FOUND, "no such message".to_owned()),
        };
        (status, text).into_response()
    }
}

impl From<PushError> for Refusal {
    fn from(error: PushError) -> Self {
        Self::Push(error)
    }
}

impl From<TopicError> for Refusal {
    fn from(error: TopicError) -> Self {
        Self::Topic(error)
    }
}

#[derive(Deserialize)]
struct ReceiveQuery {
    #[serde(default)]
    peek: Option<bool>,
    #[serde(default)]
    timeout: Option<u64>,
    #[serde(default)]
    topic: Option<Base64>,
}

async fn receive(State(node): Node, Query(query): Query<ReceiveQuery>) -> Response {
    let wait = Duration::from_secs(query.timeout.unwrap_or(0));
    let topic = query.topic.map(|topic| topic.0);
    let mailbox = node.mailbox();
    match mailbox.pop(topic.as_deref(), query.peek.unwrap_or(false), wait).await {
        Some(message) => Json(MessageInfo::new(&message, &mailbox.own())).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    }
}

#[derive(Deserialize)]
struct SendQuery {
    #[serde(default)]
    reply_timeout: Option<u64>,
}

async fn send(
    State(node): Node,
    Query(query): Query<SendQuery>,
    Json(request): Json<MessageRequest>,
) -> Result<Response, Refusal> {
    let mailbox = node.mailbox();
    let Some(wait) = query.reply_timeout else {
        let id = mailbox.push(request.into())?.to_string();
        return Ok((StatusCode::CREATED, Json(IdInfo { id })).into_response());
    };
    Ok(match mailbox.ask(request.into(), Duration::from_secs(wait)).await? {
        Answer::Reply(message) => Json(MessageInfo::new(&message, &mailbox.own())).into_response(),
        Answer::None(id) => {
            (StatusCode::REQUEST_TIMEOUT, Json(IdInfo { id: id.to_string() })).into_response()
        }
    })
}

async fn reply(
    State(node): Node,
    Path(id): Path<String>,
    Json(request): Json<MessageRequest>,
) -> Result<StatusCode, Refusal> {
    node.mailbox().reply(message_id(&id)?, request.into())?;
    Ok(StatusCode::NO_CONTENT)
}

async fn status(State(node): Node, Path(id): Path<String>) -> Result<Json<StatusInfo>, Refusal> {
    let status = node.mailbox().status(message_id(&id)?).ok_or(Refusal::UnknownMessage)?;
    Ok(Json(status.into()))
}

async fn default_action(State(node): Node) -> Json<DefaultTopicAction> {
    let accept = node.mailbox().with_topics(|topics| topics.accepts_by_default());
    Json(DefaultTopicAction { accept })
}

async fn set_default_action(
    State(node): Node,
    Json(request): Json<DefaultTopicAction>,
) -> StatusCode {
    node.mailbox().with_topics(|topics| topics.set_default(request.accept));
    StatusCode::NO_CONTENT
}

async fn topics(State(node): Node) -> Json<Vec<String>> {
    Json(node.mailbox().with_topics(|topics| topics.topics().map(base64).collect()))
}

async fn add_topic(State(node): Node, Json(topic): Json<Vec<u8>>) -> Result<StatusCode, Refusal> {
    node.mailbox().with_topics(|topics| topics.add(topic))?;
    Ok(StatusCode::CREATED)
}

async fn remove_topic(State(node): Node, Path(topic): Path<String>) -> Result<StatusCode, Refusal> {
    let topic = topic_bytes(&topic)?;
    removed(node.mailbox().with_topics(|topics| topics.remove(&topic)))
}

async fn sources(
    State(node): Node,
    Path(topic): Path<String>,
) -> Result<Json<Vec<String>>, Refusal> {
    let topic = topic_bytes(&topic)?;
    let sources = node.mailbox().with_topics(|topics| {
        topics.sources(&topic).map(|sources| sources.iter().map(Subnet::to_string).collect())
    })?;
    Ok(Json(sources))
}

#[derive(Deserialize)]
struct Source {
    subnet: String,
}

async fn add_source(
    State(node): Node,
    Path(topic): Path<String>,
    Json(source): Json<Source>,
) -> Result<StatusCode, Refusal> {
    let (topic, subnet) = (topic_bytes(&topic)?, subnet(&source.subnet)?);
    node.mailbox().with_topics(|topics| topics.add_source(&topic, subnet))?;
    Ok(StatusCode::CREATED)
}

async fn remove_source(
    State(node): Node,
    Path((topic, source)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let (topic, subnet) = (topic_bytes(&topic)?, subnet(&source)?);
    removed(node.mailbox().with_topics(|topics| topics.remove_source(&topic, subnet)))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ForwardSocket {
    socket_path: PathBuf,
}

async fn forward(
    State(node): Node,
    Path(topic): Path<String>,
) -> Result<Json<Option<String>>, Refusal> {
    let topic = topic_bytes(&topic)?;
    let path = |topics: &mut Topics| Some(topics.forward(&topic).ok()??.to_owned());
    let path = node.mailbox().with_topics(path);
    Ok(Json(path.map(|path| path.to_string_lossy().into_owned())))
}

async fn set_forward(
    State(node): Node,
    Path(topic): Path<String>,
    Json(socket): Json<ForwardSocket>,
) -> Result<StatusCode, Refusal> {
    let topic = topic_bytes(&topic)?;
    node.mailbox().with_topics(|topics| topics.set_forward(&topic, Some(socket.socket_path)))?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove_forward(
    State(node): Node,
    Path(topic): Path<String>,
) -> Result<StatusCode, Refusal> {
    let topic = topic_bytes(&topic)?;
    removed(node.mailbox().with_topics(|topics| topics.set_forward(&topic, None)))
}

/// What is not there is as good as removed.
fn removed(result: Result<(), TopicError>) -> Result<StatusCode, Refusal> {
    match result {
        Ok(()) | Err(TopicError::Unknown) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(error.into()),
    }
}

fn message_id(text: &str) -> Result<MessageId, Refusal> {
    text.parse()
        .map_err(|error: mycelium_wire::message::MessageIdError| Refusal::Id(error.to_string()))
}

fn topic_bytes(text: &str) -> Result<Vec<u8>, Refusal> {
    from_base64(text).ok_or_else(|| Refusal::NotBase64(text.to_owned()))
}

fn subnet(text: &str) -> Result<Subnet, Refusal> {
    text.parse()
        .map_err(|error: mycelium_wire::identity::SubnetError| Refusal::Subnet(error.to_string()))
}
