//! What can be called by JSON-RPC. Parameters are positional; codes of errors are the existing
//! daemon's (`reference: mycelium 1.11`).

use std::collections::VecDeque;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mycelium_wire::identity::Subnet;
use mycelium_wire::message::MessageId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::types::{Base64, IdInfo, MessageInfo, MessageRequest, StatusInfo, base64};
use super::{Control, PeerError};
use crate::messages::mailbox::Answer;
use crate::messages::{PushError, TopicError, Topics};

/// All methods with the names of their parameters, of which those with `?` may be left out.
const METHODS: [(&str, &[&str]); 25] = [
    ("getInfo", &[]),
    ("getPublicKeyFromIp", &["ip"]),
    ("getPeers", &[]),
    ("addPeer", &["endpoint"]),
    ("deletePeer", &["endpoint"]),
    ("getSelectedRoutes", &[]),
    ("getFallbackRoutes", &[]),
    ("getQueriedSubnets", &[]),
    ("getPacketStatistics", &[]),
    ("rpc.discover", &[]),
    ("popMessage", &["peek?", "timeout?", "topic?"]),
    ("pushMessage", &["message", "replyTimeout?"]),
    ("pushMessageReply", &["id", "message"]),
    ("getMessageInfo", &["id"]),
    ("getDefaultTopicAction", &[]),
    ("setDefaultTopicAction", &["accept"]),
    ("getTopics", &[]),
    ("addTopic", &["topic"]),
    ("removeTopic", &["topic"]),
    ("getTopicSources", &["topic"]),
    ("addTopicSource", &["topic", "subnet"]),
    ("removeTopicSource", &["topic", "subnet"]),
    ("getTopicForwardSocket", &["topic"]),
    ("setTopicForwardSocket", &["topic", "path"]),
    ("removeTopicForwardSocket", &["topic"]),
];

const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
const INTERNAL_ERROR: i64 = -32603;
const BAD_IP: i64 = -32007;
const NO_KEY: i64 = -32008;
const BAD_ENDPOINT: i64 = -32009;
const PEER_EXISTS: i64 = -32010;
const PEER_UNKNOWN: i64 = -32011;
const BAD_ENDPOINT_TO_DELETE: i64 = -32012;
const BAD_TOPIC: i64 = -32013;
const PUSH_FAILED: i64 = -32015;
const BAD_ID: i64 = -32018;
const UNKNOWN_MESSAGE: i64 = -32019;
const BAD_INFO_ID: i64 = -32020;
const TOPIC_NOT_BASE64: i64 = -32021;
const BAD_SUBNET: i64 = -32023;
const UNKNOWN_TOPIC: i64 = -32030;

/// What went wrong.
#[derive(Debug)]
pub(super) struct RpcError {
    pub(super) code: i64,
    pub(super) message: String,
}

impl RpcError {
    pub(super) fn new(code: i64, message: String) -> Self {
        Self { code, message }
    }
}

impl From<TopicError> for RpcError {
    fn from(error: TopicError) -> Self {
        let code = if error == TopicError::Unknown { UNKNOWN_TOPIC } else { BAD_TOPIC };
        Self::new(code, error.to_string())
    }
}

impl From<PushError> for RpcError {
    fn from(error: PushError) -> Self {
        let code =
            if matches!(error, PushError::TopicTooLong(_)) { BAD_TOPIC } else { PUSH_FAILED };
        Self::new(code, error.to_string())
    }
}

/// Calls a method.
pub(super) async fn call(
    node: &Arc<dyn Control>,
    method: &str,
    parameters: Option<Value>,
) -> Result<Value, RpcError> {
    let mut parameters = Parameters::new(parameters)?;
    match method {
        "getInfo" => result(node.info()),
        "getPublicKeyFromIp" => public_key(node, &parameters.take::<String>("ip")?),
        "getPeers" => result(node.peers()),
        "addPeer" => {
            let added = node.add_peer(&parameters.take::<String>("endpoint")?);
            added.map(|()| json!(true)).map_err(|error| peer_error(&error, BAD_ENDPOINT))
        }
        "deletePeer" => {
            let removed = node.remove_peer(&parameters.take::<String>("endpoint")?);
            let error = |error| peer_error(&error, BAD_ENDPOINT_TO_DELETE);
            removed.map(|()| json!(true)).map_err(error)
        }
        "getSelectedRoutes" => result(node.routes().await.selected),
        "getFallbackRoutes" => result(node.routes().await.fallback),
        "getQueriedSubnets" => result(node.routes().await.queried),
        "getPacketStatistics" => result(node.packet_statistics()),
        "rpc.discover" => Ok(description()),
        "popMessage" => pop(node, parameters).await,
        "pushMessage" => push(node, parameters).await,
        "pushMessageReply" => {
            let id = message_id(&parameters.take::<String>("id")?, BAD_ID)?;
            node.mailbox().reply(id, parameters.take::<MessageRequest>("message")?.into())?;
            Ok(json!(true))
        }
        "getMessageInfo" => {
            let id = message_id(&parameters.take::<String>("id")?, BAD_INFO_ID)?;
            let unknown = || RpcError::new(UNKNOWN_MESSAGE, format!("no message {id}"));
            result(StatusInfo::from(node.mailbox().status(id).ok_or_else(unknown)?))
        }
        _ => topic_call(node, method, parameters),
    }
}

/// Calls a method that is about topics.
fn topic_call(
    node: &Arc<dyn Control>,
    method: &str,
    mut parameters: Parameters,
) -> Result<Value, RpcError> {
    let mailbox = node.mailbox();
    match method {
        "getDefaultTopicAction" => {
            result(mailbox.with_topics(|topics| topics.accepts_by_default()))
        }
        "setDefaultTopicAction" => {
            let accept = parameters.take("accept")?;
            mailbox.with_topics(|topics| topics.set_default(accept));
            Ok(json!(true))
        }
        "getTopics" => {
            let topics = mailbox.with_topics(|topics| topics.topics().map(base64).collect());
            result::<Vec<String>>(topics)
        }
        "addTopic" => {
            let topic = parameters.topic()?;
            done(mailbox.with_topics(|topics| topics.add(topic)))
        }
        "removeTopic" => {
            let topic = parameters.topic()?;
            removed(mailbox.with_topics(|topics| topics.remove(&topic)))
        }
        "getTopicSources" => {
            let topic = parameters.topic()?;
            let sources = mailbox.with_topics(|topics| {
                topics.sources(&topic).map(|all| all.iter().map(Subnet::to_string).collect())
            })?;
            result::<Vec<String>>(sources)
        }
        "addTopicSource" => {
            let (topic, subnet) = (parameters.topic()?, parameters.subnet()?);
            done(mailbox.with_topics(|topics| topics.add_source(&topic, subnet)))
        }
        "removeTopicSource" => {
            let (topic, subnet) = (parameters.topic()?, parameters.subnet()?);
            removed(mailbox.with_topics(|topics| topics.remove_source(&topic, subnet)))
        }
        "getTopicForwardSocket" => {
            let topic = parameters.topic()?;
            let path = |topics: &mut Topics| Some(topics.forward(&topic).ok()??.to_owned());
            result(mailbox.with_topics(path))
        }
        "setTopicForwardSocket" => {
            let (topic, path) = (parameters.topic()?, parameters.take::<PathBuf>("path")?);
            done(mailbox.with_topics(|topics| topics.set_forward(&topic, Some(path))))
        }
        "removeTopicForwardSocket" => {
            let topic = parameters.topic()?;
            removed(mailbox.with_topics(|topics| topics.set_forward(&topic, None)))
        }
        other => Err(RpcError::new(METHOD_NOT_FOUND, format!("no method {other:?}"))),
    }
}

fn public_key(node: &Arc<dyn Control>, ip: &str) -> Result<Value, RpcError> {
    let address: IpAddr =
        ip.parse().map_err(|_| RpcError::new(BAD_IP, format!("{ip:?} is no IP address")))?;
    let key = match address {
        IpAddr::V6(address) => node.public_key(address),
        IpAddr::V4(_) => None,
    };
    let unknown = || RpcError::new(NO_KEY, format!("no key is known for {address}"));
    Ok(json!(key.ok_or_else(unknown)?.to_string()))
}

async fn pop(node: &Arc<dyn Control>, mut parameters: Parameters) -> Result<Value, RpcError> {
    let is_peek = parameters.take::<Option<bool>>("peek")?.unwrap_or(false);
    let seconds = parameters.take::<Option<u64>>("timeout")?.unwrap_or(0);
    let topic = parameters.optional_topic()?;
    let mailbox = node.mailbox();
    let message = mailbox.pop(topic.as_deref(), is_peek, Duration::from_secs(seconds)).await;
    result(message.map(|message| MessageInfo::new(&message, &mailbox.own())))
}

async fn push(node: &Arc<dyn Control>, mut parameters: Parameters) -> Result<Value, RpcError> {
    let message = parameters.take::<MessageRequest>("message")?.into();
    let mailbox = node.mailbox();
    let id = match parameters.take::<Option<u64>>("replyTimeout")? {
        None => mailbox.push(message)?,
        Some(seconds) => match mailbox.ask(message, Duration::from_secs(seconds)).await? {
            Answer::Reply(message) => return result(MessageInfo::new(&message, &mailbox.own())),
            Answer::None(id) => id,
        },
    };
    result(IdInfo { id: id.to_string() })
}

/// Positional parameters, taken one after the other; those that are missing are null.
struct Parameters(VecDeque<Value>);

impl Parameters {
    fn new(parameters: Option<Value>) -> Result<Self, RpcError> {
        match parameters {
            None | Some(Value::Null) => Ok(Self(VecDeque::new())),
            Some(Value::Array(parameters)) => Ok(Self(parameters.into())),
            Some(_) => {
                Err(RpcError::new(INVALID_PARAMS, "parameters are an array here".to_owned()))
            }
        }
    }

    fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, RpcError> {
        let value = self.0.pop_front().unwrap_or_default();
        let wrong = |error| RpcError::new(INVALID_PARAMS, format!("parameter {name}: {error}"));
        serde_json::from_value(value).map_err(wrong)
    }

    fn topic(&mut self) -> Result<Vec<u8>, RpcError> {
        let none = || RpcError::new(INVALID_PARAMS, "parameter topic is missing".to_owned());
        self.optional_topic()?.ok_or_else(none)
    }

    fn optional_topic(&mut self) -> Result<Option<Vec<u8>>, RpcError> {
        let wrong = |error: RpcError| RpcError::new(TOPIC_NOT_BASE64, error.message);
        let topic = self.take::<Option<Base64>>("topic").map_err(wrong)?;
        Ok(topic.map(|topic| topic.0))
    }

    fn subnet(&mut self) -> Result<Subnet, RpcError> {
        let text = self.take::<String>("subnet")?;
        let wrong = |error: mycelium_wire::identity::SubnetError| {
            RpcError::new(BAD_SUBNET, error.to_string())
        };
        text.parse().map_err(wrong)
    }
}

fn message_id(text: &str, code: i64) -> Result<MessageId, RpcError> {
    let wrong =
        |error: mycelium_wire::message::MessageIdError| RpcError::new(code, error.to_string());
    text.parse().map_err(wrong)
}

fn peer_error(error: &PeerError, invalid: i64) -> RpcError {
    let code = match error {
        PeerError::Invalid(_) => invalid,
        PeerError::Exists(_) => PEER_EXISTS,
        PeerError::Unknown(_) => PEER_UNKNOWN,
    };
    RpcError::new(code, error.to_string())
}

fn result<T: Serialize>(value: T) -> Result<Value, RpcError> {
    // A socket's path may be no text.
    serde_json::to_value(value).map_err(|error| RpcError::new(INTERNAL_ERROR, error.to_string()))
}

fn done(changed: Result<(), TopicError>) -> Result<Value, RpcError> {
    changed.map(|()| json!(true)).map_err(RpcError::from)
}

/// What is not there is as good as removed.
fn removed(changed: Result<(), TopicError>) -> Result<Value, RpcError> {
    match changed {
        Err(TopicError::Unknown) => Ok(json!(true)),
        changed => done(changed),
    }
}

/// The methods as an OpenRPC document.
fn description() -> Value {
    let parameter = |name: &&str| {
        let required = !name.ends_with('?');
        json!({ "name": name.trim_end_matches('?'), "required": required, "schema": {} })
    };
    let method = |(name, parameters): &(&str, &[&str])| {
        let parameters: Vec<_> = parameters.iter().map(parameter).collect();
        json!({
            "name": name,
            "paramStructure": "by-position",
            "params": parameters,
            "result": { "name": "result", "schema": {} },
        })
    };
    let methods: Vec<_> = METHODS.iter().map(method).collect();
    let info = json!({ "title": "Mycelium", "version": env!("CARGO_PKG_VERSION") });
    json!({ "openrpc": "1.2.6", "info": info, "methods": methods })
}

#[cfg(test)]
pub(super) fn method_names() -> impl Iterator<Item = &'static str> {
    METHODS.iter().map(|(name, _)| *name)
}
