//! Both servers with a node behind them that is made up, over real connections.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::status::{PacketCounts, PeerHealth, RouteCounts};
use super::types::{
    AddressInfo, ConnectionState, EndpointInfo, PacketCount, PeerKind, QueriedSubnet, RouteInfo,
    SessionState,
};
use super::*;
use crate::messages::{Peer, Topics};
use mycelium_wire::control::Metric;

/// A node that knows itself and one peer.
struct Node {
    own: Peer,
    mailbox: Arc<Mailbox>,
    peers: Mutex<BTreeSet<String>>,
}

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32])
}

fn peer(number: u8) -> Peer {
    Peer { address: key(number).address(), key: key(number) }
}

impl Control for Node {
    fn info(&self) -> NodeInfo {
        NodeInfo {
            node_subnet: self.own.key.subnet(),
            node_ip: self.own.address,
            node_pubkey: self.own.key,
            node_start_time: 1_700_000_000,
        }
    }

    fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    fn peers(&self) -> Vec<PeerInfo> {
        let peers = self.peers.lock().unwrap();
        let info = |endpoint: &String| PeerInfo {
            endpoint: EndpointInfo { proto: "tcp", addr: AddressInfo::Socket(endpoint.clone()) },
            kind: PeerKind::Static,
            connection_state: ConnectionState::Connecting,
            tx_bytes: 1,
            rx_bytes: 2,
            discovered: 3,
            last_connected: None,
        };
        peers.iter().map(info).collect()
    }

    fn add_peer(&self, endpoint: &str) -> Result<(), PeerError> {
        let invalid = || PeerError::Invalid(format!("{endpoint} is no endpoint"));
        let address = endpoint.strip_prefix("tcp://").ok_or_else(invalid)?;
        if !self.peers.lock().unwrap().insert(address.to_owned()) {
            return Err(PeerError::Exists(endpoint.to_owned()));
        }
        Ok(())
    }

    fn remove_peer(&self, endpoint: &str) -> Result<(), PeerError> {
        let invalid = || PeerError::Invalid(format!("{endpoint} is no endpoint"));
        let address = endpoint.strip_prefix("tcp://").ok_or_else(invalid)?;
        if !self.peers.lock().unwrap().remove(address) {
            return Err(PeerError::Unknown(endpoint.to_owned()));
        }
        Ok(())
    }

    fn public_key(&self, address: Ipv6Addr) -> Option<PublicKey> {
        (address == self.own.address).then_some(self.own.key)
    }

    fn packet_statistics(&self) -> PacketStatistics {
        let ip = self.own.address;
        let by_source = vec![PacketCount { ip, packet_count: 1, byte_count: 2 }];
        PacketStatistics { by_source, by_destination: Vec::new() }
    }

    fn sessions(&self) -> Vec<SessionInfo> {
        vec![SessionInfo {
            address: self.own.address,
            public_key: self.own.key,
            state: SessionState::ForwardSecret,
            announced: true,
            proved: true,
            cipher: Some("AES-256-GCM"),
            age: Some(7),
            packets_sent: Some(9),
        }]
    }

    fn forget_session(&self, address: Ipv6Addr) -> bool {
        address == self.own.address
    }

    fn routes(&self) -> Later<'_, Routes> {
        let route = |metric| RouteInfo {
            subnet: "400:1::/64".parse().unwrap(),
            next_hop: "TCP a <-> b".to_owned(),
            metric,
            seqno: 5,
        };
        let (selected, fallback) = (vec![route(Metric(7))], vec![route(Metric::INFINITE)]);
        let subnet = "400:2::/64".parse().unwrap();
        let queried = vec![QueriedSubnet { subnet, expiration: Duration::from_millis(9500) }];
        Box::pin(async { Routes { selected, fallback, queried } })
    }

    fn status(&self) -> Later<'_, NodeStatus> {
        let (route_counts, packets) = (RouteCounts::default(), PacketCounts::default());
        let (version, node, uptime_seconds) = ("1.2.3", self.info(), 9);
        let peer = PeerHealth {
            endpoint: "tcp://192.0.2.1:9651".to_owned(),
            kind: PeerKind::Static,
            connection_state: ConnectionState::Dead,
            link: None,
            connected_seconds: None,
            cost: None,
            round_trip_us: None,
            lost_hellos: None,
            routes: None,
            tx_bytes: 1,
            rx_bytes: 2,
            dropped_packets: 0,
            trouble: Some("refused".to_owned()),
        };
        let peers = vec![peer];
        let status = NodeStatus {
            version,
            node,
            uptime_seconds,
            peers,
            route_counts,
            packets,
            sessions: Vec::new(),
        };
        Box::pin(async move { status })
    }

    fn probe(&self, request: ProbeRequest) -> Later<'_, Result<ProbeResult, String>> {
        let is_own = request.address == self.own.address;
        Box::pin(async move {
            if is_own {
                return Err("own".to_owned());
            }
            Ok(ProbeResult::Answered { round_trip_us: request.timeout_ms, hop_limit: Some(63) })
        })
    }
}

/// Two nodes whose messages reach each other, and the addresses of the first one's servers.
async fn served() -> (Servers, Arc<Mailbox>) {
    let boxes = [1, 2].map(|number| Mailbox::new(peer(number), Topics::default()));
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to) = (Arc::clone(&boxes[from]), Arc::clone(&boxes[to]));
        tokio::spawn(async move {
            from.run(|destination, payload| to.received(from.own(), destination, payload)).await;
        });
    }
    let [mailbox, other] = boxes;
    let peers = Mutex::new(BTreeSet::from(["192.0.2.1:9651".to_owned()]));
    let node: Arc<dyn Control> = Arc::new(Node { own: peer(1), mailbox, peers });
    let [http, rpc] = [listen().await, listen().await];
    let servers = Servers { http: http.local_addr().unwrap(), rpc: rpc.local_addr().unwrap() };
    tokio::spawn(serve_http(Arc::clone(&node), http));
    tokio::spawn(serve_rpc(node, rpc));
    (servers, other)
}

async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

struct Servers {
    http: SocketAddr,
    rpc: SocketAddr,
}

impl Servers {
    /// Status and body.
    async fn http(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let headers = "content-type: application/json\r\n";
        request(self.http, method, &format!("/api/v1{path}"), headers, &body).await
    }

    async fn rpc(&self, method: &str, params: Value) -> Result<Value, i64> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let headers = "content-type: application/json\r\n";
        let (status, answer) = request(self.rpc, "POST", "/rpc", headers, &body.to_string()).await;
        assert_eq!((status, &answer["id"], &answer["jsonrpc"]), (200, &json!(1), &json!("2.0")));
        match answer["error"]["code"].as_i64() {
            Some(code) => Err(code),
            None => Ok(answer["result"].clone()),
        }
    }
}

/// Sends a request and gives status and body: JSON, a text, or null if there is none.
async fn request(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> (u16, Value) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\
         content-length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let value = match body {
        "" => Value::Null,
        text => serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())),
    };
    (status, value)
}

#[tokio::test]
async fn http_tells_about_the_node() {
    let (servers, _) = served().await;
    let get = async |path: &str| servers.http("GET", path, None).await;
    let info = json!({
        "nodeSubnet": key(1).subnet().to_string(),
        "nodeIp": key(1).address().to_string(),
        "nodePubkey": key(1).to_string(),
        "nodeStartTime": 1_700_000_000,
    });
    assert_eq!(get("/admin").await, (200, info));
    let route = json!({
        "subnet": "400:1::/64", "nextHop": "TCP a <-> b", "metric": 7, "seqno": 5,
    });
    assert_eq!(get("/admin/routes/selected").await, (200, json!([route])));
    let (_, fallback) = get("/admin/routes/fallback").await;
    assert_eq!(fallback[0]["metric"], "infinite");
    let queried = json!([{ "subnet": "400:2::/64", "expiration": "9" }]);
    assert_eq!(get("/admin/routes/queried").await, (200, queried));
    let (_, statistics) = get("/admin/stats/packets").await;
    let count = json!({ "ip": key(1).address().to_string(), "packetCount": 1, "byteCount": 2 });
    assert_eq!(statistics, json!({ "bySource": [count], "byDestination": [] }));
    let public_key = json!({ "publicKey": key(1).to_string() });
    assert_eq!(get(&format!("/pubkey/{}", key(1).address())).await, (200, public_key));
    assert_eq!(get("/pubkey/400::1").await.0, 404);
    assert_eq!(get("/pubkey/10.0.0.1").await.0, 404);
    assert_eq!(get("/pubkey/x").await.0, 400);
    let (_, sessions) = get("/sessions").await;
    let expected = json!([{
        "address": key(1).address(), "publicKey": key(1).to_string(), "state": "forwardSecret",
        "announced": true, "proved": true, "cipher": "AES-256-GCM", "age": 7, "packetsSent": 9,
    }]);
    assert_eq!(sessions, expected);
    let forget =
        async |address| servers.http("DELETE", &format!("/sessions/{address}"), None).await.0;
    assert_eq!(forget(key(1).address()).await, 204);
    assert_eq!(forget(key(2).address()).await, 404);
    assert_eq!(get("/nothing").await.0, 404);
}

#[tokio::test]
async fn http_adds_and_removes_peers() {
    let (servers, _) = served().await;
    let (_, peers) = servers.http("GET", "/admin/peers", None).await;
    let expected = json!([{
        "endpoint": { "proto": "tcp", "addr": { "socket": "192.0.2.1:9651" } },
        "type": "static",
        "connectionState": "connecting",
        "txBytes": 1,
        "rxBytes": 2,
        "discovered": 3,
        "lastConnected": null,
    }]);
    assert_eq!(peers, expected);
    let add = async |endpoint: &str| {
        servers.http("POST", "/admin/peers", Some(json!({ "endpoint": endpoint }))).await.0
    };
    assert_eq!(add("tcp://[::1]:1").await, 204);
    assert_eq!(add("tcp://[::1]:1").await, 409);
    assert_eq!(add("nothing").await, 400);
    let remove = async |endpoint: &str| {
        servers.http("DELETE", &format!("/admin/peers/{endpoint}"), None).await.0
    };
    assert_eq!(remove("tcp%3A%2F%2F%5B%3A%3A1%5D%3A1").await, 204);
    assert_eq!(remove("tcp%3A%2F%2F%5B%3A%3A1%5D%3A1").await, 404);
    assert_eq!(remove("nothing").await, 400);
}

#[tokio::test]
async fn http_has_what_existing_daemons_have_not_under_paths_of_its_own() {
    let (servers, _) = served().await;
    let (code, status) = servers.http("GET", "/admin/status", None).await;
    let expected = json!({
        "endpoint": "tcp://192.0.2.1:9651", "type": "static", "connectionState": "dead",
        "txBytes": 1, "rxBytes": 2, "droppedPackets": 0, "trouble": "refused",
    });
    assert_eq!((code, &status["peers"][0], &status["uptimeSeconds"]), (200, &expected, &json!(9)));
    let probe = async |body: Value| servers.http("POST", "/admin/probe", Some(body)).await;
    let answered = json!({ "outcome": "answered", "roundTripUs": 5, "hopLimit": 63 });
    assert_eq!(probe(json!({ "address": "400::1", "timeoutMs": 5 })).await, (200, answered));
    assert_eq!(probe(json!({ "address": key(1).address().to_string() })).await.0, 400);
    assert_eq!(probe(json!({ "address": "10.0.0.1" })).await.0, 422);
    assert_eq!(probe(json!({ "address": "400::1", "count": 5 })).await.0, 422);
}

#[tokio::test]
async fn http_sends_and_receives_messages() {
    let (servers, other) = served().await;
    let to_other =
        json!({ "dst": { "pk": key(2).to_string() }, "topic": "dG9waWM=", "payload": "aGVsbG8=" });
    let (status, sent) = servers.http("POST", "/messages", Some(to_other.clone())).await;
    assert_eq!(status, 201);
    let message = other.pop(Some(b"topic"), false, Duration::from_secs(10)).await.unwrap();
    assert_eq!(
        (&*message.payload, message.id.to_string().as_str()),
        (&b"hello"[..], sent["id"].as_str().unwrap())
    );
    let path = format!("/messages/status/{}", message.id);
    let (_, status) = servers.http("GET", &path, None).await;
    assert_eq!(
        (&status["dst"], &status["msgLen"]),
        (&json!(key(2).address().to_string()), &json!(5))
    );
    let seconds = |name: &str| status[name].as_u64().unwrap();
    assert!(seconds("deadline").abs_diff(seconds("created") + 300) <= 2);
    assert_eq!(servers.http("GET", "/messages/status/0011223344556677", None).await.0, 404);
    assert_eq!(servers.http("GET", "/messages/status/x", None).await.0, 400);

    // A question, answered by the other side.
    let asked = servers.http("POST", "/messages?reply_timeout=10", Some(to_other.clone()));
    let answered = async {
        let question = other.pop(None, false, Duration::from_secs(10)).await.unwrap();
        let payload = b"yes".to_vec();
        let destination = peer(1).address;
        let answer = crate::messages::Outbound { destination, topic: Vec::new(), payload };
        other.reply(question.id, answer).unwrap();
        question.id
    };
    let ((status, reply), id) = tokio::join!(asked, answered);
    let expected = json!({
        "id": id.to_string(),
        "srcIp": key(2).address().to_string(),
        "srcPk": key(2).to_string(),
        "dstIp": key(1).address().to_string(),
        "dstPk": key(1).to_string(),
        "payload": "eWVz",
    });
    assert_eq!((status, reply), (200, expected));
    let (status, none) = servers.http("POST", "/messages?reply_timeout=0", Some(to_other)).await;
    assert_eq!((status, none["id"].as_str().map(str::len)), (408, Some(16)));
}

#[tokio::test]
async fn http_gives_messages_that_arrived() {
    let (servers, other) = served().await;
    assert_eq!(servers.http("GET", "/messages", None).await, (204, Value::Null));
    let (topic, payload) = (b"a".to_vec(), b"b".to_vec());
    let message = crate::messages::Outbound { destination: peer(1).address, topic, payload };
    let waiting = servers.http("GET", "/messages?timeout=10&peek=true&topic=YQ%3D%3D", None);
    let (peeked, id) = tokio::join!(waiting, async { other.push(message).unwrap() });
    assert_eq!(
        (peeked.0, &peeked.1["topic"], &peeked.1["payload"]),
        (200, &json!("YQ=="), &json!("Yg=="))
    );
    assert_eq!(peeked.1["id"], id.to_string());
    assert_eq!(servers.http("GET", "/messages?topic=Yg%3D%3D", None).await.0, 204);
    assert_eq!(servers.http("GET", "/messages", None).await, peeked);
    assert_eq!(servers.http("GET", "/messages", None).await.0, 204);
    // An answer to it, by its id.
    let answer = json!({ "dst": { "ip": key(2).address().to_string() }, "payload": "Yw==" });
    let path = format!("/messages/reply/{id}");
    assert_eq!(servers.http("POST", &path, Some(answer)).await.0, 204);
    assert_eq!(&*other.pop(None, false, Duration::from_secs(10)).await.unwrap().payload, b"c");
}

#[tokio::test]
async fn http_refuses_bodies_of_every_wrong_shape() {
    let (servers, _) = served().await;
    let post = async |body: Value| servers.http("POST", "/messages", Some(body)).await.0;
    let ip = json!({ "ip": key(2).address().to_string() });
    for body in [
        json!(null),
        json!([]),
        json!({}),
        json!({ "dst": ip }),
        json!({ "dst": ip, "payload": "not base64" }),
        json!({ "dst": ip, "payload": 5 }),
        json!({ "dst": { "ip": "10.0.0.1" }, "payload": "" }),
        json!({ "dst": { "pk": "00" }, "payload": "" }),
        json!({ "dst": { "name": "x" }, "payload": "" }),
    ] {
        let status = post(body.clone()).await;
        assert!((400..=422).contains(&status), "{status} for {body}");
    }
    let outside = json!({ "dst": { "ip": "2001:db8::1" }, "payload": "" });
    assert_eq!(post(outside).await, 400);
    let topic = super::types::base64(&[0; 256]);
    assert_eq!(post(json!({ "dst": ip, "topic": topic, "payload": "" })).await, 400);
    let text =
        request(servers.http, "POST", "/api/v1/messages", "content-type: text/plain\r\n", "{}")
            .await;
    assert_eq!(text.0, 415);
    let page = request(servers.http, "GET", "/api/v1/messages", "origin: http://x\r\n", "").await;
    assert_eq!(page.0, 403);
}

#[tokio::test]
async fn http_changes_the_rules_of_topics() {
    let (servers, _) = served().await;
    let http = async |method: &str, path: &str, body: Value| {
        let body = (!body.is_null()).then_some(body);
        servers.http(method, &format!("/messages/topics{path}"), body).await
    };
    assert_eq!(http("GET", "/default", json!(null)).await, (200, json!({ "accept": true })));
    assert_eq!(http("PUT", "/default", json!({ "accept": false })).await.0, 204);
    assert_eq!(http("GET", "/default", json!(null)).await, (200, json!({ "accept": false })));
    assert_eq!(http("GET", "", json!(null)).await, (200, json!([])));
    // 0xfb 0xff: base64 with all that a path can't have unescaped.
    assert_eq!(http("POST", "", json!([0xfb, 0xff])).await.0, 201);
    assert_eq!(http("GET", "", json!(null)).await, (200, json!(["+/8="])));
    let sources = "/%2B%2F8%3D/sources";
    let subnet = json!({ "subnet": "400::/64" });
    assert_eq!(http("POST", sources, subnet.clone()).await.0, 201);
    assert_eq!(http("POST", sources, json!({ "subnet": "400::" })).await.0, 400);
    // A source brings its topic with it.
    assert_eq!(http("GET", "/YQ%3D%3D/sources", json!(null)).await.0, 404);
    assert_eq!(http("POST", "/YQ%3D%3D/sources", subnet).await.0, 201);
    assert_eq!(http("GET", "/YQ%3D%3D/sources", json!(null)).await.0, 200);
    assert_eq!(http("GET", sources, json!(null)).await, (200, json!(["400::/64"])));
    assert_eq!(http("DELETE", &format!("{sources}/400::%2F64"), json!(null)).await.0, 204);
    assert_eq!(http("GET", sources, json!(null)).await, (200, json!([])));
    let forward = "/%2B%2F8%3D/forward";
    assert_eq!(http("GET", forward, json!(null)).await, (200, json!(null)));
    assert_eq!(http("PUT", forward, json!({ "socketPath": "/run/x" })).await.0, 204);
    assert_eq!(http("GET", forward, json!(null)).await, (200, json!("/run/x")));
    assert_eq!(http("DELETE", forward, json!(null)).await.0, 204);
    for path in ["/%2B%2F8%3D", "/%2B%2F8%3D", forward, "/Yg%3D%3D/sources/400::%2F64"] {
        assert_eq!(http("DELETE", path, json!(null)).await.0, 204, "{path}");
    }
    assert_eq!(http("GET", forward, json!(null)).await, (200, json!(null)));
    assert_eq!(http("PUT", forward, json!({ "socketPath": "/run/x" })).await.0, 404);
    assert_eq!(http("DELETE", "/not-base64", json!(null)).await.0, 400);
}

#[tokio::test]
async fn rpc_tells_about_the_node_and_its_peers() {
    let (servers, _) = served().await;
    let rpc = async |method: &str, params: Value| servers.rpc(method, params).await;
    assert_eq!(rpc("getInfo", json!([])).await.unwrap()["nodePubkey"], key(1).to_string());
    assert_eq!(rpc("getPublicKeyFromIp", json!(["x"])).await, Err(-32007));
    assert_eq!(rpc("getPublicKeyFromIp", json!(["400::1"])).await, Err(-32008));
    let own = rpc("getPublicKeyFromIp", json!([key(1).address().to_string()])).await;
    assert_eq!(own.unwrap(), key(1).to_string());
    assert_eq!(rpc("getPeers", json!([])).await.unwrap()[0]["rxBytes"], 2);
    assert_eq!(rpc("addPeer", json!(["tcp://[::1]:1"])).await, Ok(json!(true)));
    assert_eq!(rpc("addPeer", json!(["tcp://[::1]:1"])).await, Err(-32010));
    assert_eq!(rpc("addPeer", json!(["x"])).await, Err(-32009));
    assert_eq!(rpc("deletePeer", json!(["tcp://[::1]:1"])).await, Ok(json!(true)));
    assert_eq!(rpc("deletePeer", json!(["tcp://[::1]:1"])).await, Err(-32011));
    assert_eq!(rpc("deletePeer", json!(["x"])).await, Err(-32012));
    assert_eq!(rpc("getSelectedRoutes", json!(null)).await.unwrap()[0]["metric"], 7);
    assert_eq!(rpc("getFallbackRoutes", json!([])).await.unwrap()[0]["metric"], "infinite");
    assert_eq!(rpc("getQueriedSubnets", json!([])).await.unwrap()[0]["expiration"], "9");
    assert_eq!(rpc("getPacketStatistics", json!([])).await.unwrap()["byDestination"], json!([]));
    assert_eq!(rpc("nothing", json!([])).await, Err(-32601));
    assert_eq!(rpc("addPeer", json!([])).await, Err(-32602));
    assert_eq!(rpc("addPeer", json!({ "endpoint": "x" })).await, Err(-32602));
}

#[tokio::test]
async fn rpc_sends_receives_and_rules_messages() {
    let (servers, other) = served().await;
    let rpc = async |method: &str, params: Value| servers.rpc(method, params).await;
    let message = json!({ "dst": { "pk": key(2).to_string() }, "payload": "aGVsbG8=" });
    let sent = rpc("pushMessage", json!([message])).await.unwrap();
    let received = other.pop(None, false, Duration::from_secs(10)).await.unwrap();
    assert_eq!(sent, json!({ "id": received.id.to_string() }));
    assert_eq!(rpc("getMessageInfo", json!([sent["id"]])).await.unwrap()["msgLen"], 5);
    assert_eq!(rpc("getMessageInfo", json!(["0011223344556677"])).await, Err(-32019));
    assert_eq!(rpc("getMessageInfo", json!(["x"])).await, Err(-32020));
    assert_eq!(rpc("pushMessageReply", json!(["x", message])).await, Err(-32018));
    let outside = json!({ "dst": { "ip": "2001:db8::1" }, "payload": "" });
    assert_eq!(rpc("pushMessage", json!([outside])).await, Err(-32015));
    let id = rpc("pushMessage", json!([message, 0])).await.unwrap();
    assert_eq!(id["id"].as_str().map(str::len), Some(16));
    assert_eq!(rpc("popMessage", json!([])).await, Ok(json!(null)));
    let destination = peer(1).address;
    let (topic, payload) = (b"a".to_vec(), b"b".to_vec());
    other.push(crate::messages::Outbound { destination, topic, payload }).unwrap();
    let popped = rpc("popMessage", json!([false, 10, "YQ=="])).await.unwrap();
    assert_eq!(popped["payload"], "Yg==");
    assert_eq!(rpc("popMessage", json!([false, 0, "*"])).await, Err(-32021));

    assert_eq!(rpc("setDefaultTopicAction", json!([false])).await, Ok(json!(true)));
    assert_eq!(rpc("getDefaultTopicAction", json!([])).await, Ok(json!(false)));
    assert_eq!(rpc("addTopic", json!(["YQ=="])).await, Ok(json!(true)));
    assert_eq!(rpc("addTopic", json!(["*"])).await, Err(-32021));
    assert_eq!(rpc("getTopics", json!([])).await, Ok(json!(["YQ=="])));
    assert_eq!(rpc("addTopicSource", json!(["YQ==", "400::/64"])).await, Ok(json!(true)));
    assert_eq!(rpc("addTopicSource", json!(["YQ==", "400::"])).await, Err(-32023));
    assert_eq!(rpc("getTopicSources", json!(["Yg=="])).await, Err(-32030));
    assert_eq!(rpc("addTopicSource", json!(["Yg==", "400::/64"])).await, Ok(json!(true)));
    assert_eq!(rpc("getTopicSources", json!(["YQ=="])).await, Ok(json!(["400::/64"])));
    assert_eq!(rpc("removeTopicSource", json!(["YQ==", "400::/64"])).await, Ok(json!(true)));
    assert_eq!(rpc("setTopicForwardSocket", json!(["YQ==", "/x"])).await, Ok(json!(true)));
    assert_eq!(rpc("getTopicForwardSocket", json!(["YQ=="])).await, Ok(json!("/x")));
    assert_eq!(rpc("removeTopicForwardSocket", json!(["YQ=="])).await, Ok(json!(true)));
    assert_eq!(rpc("getTopicForwardSocket", json!(["YQ=="])).await, Ok(json!(null)));
    assert_eq!(rpc("removeTopic", json!(["YQ=="])).await, Ok(json!(true)));
    assert_eq!(rpc("removeTopic", json!(["YQ=="])).await, Ok(json!(true)));
    assert_eq!(rpc("removeTopicSource", json!(["YQ==", "400::/64"])).await, Ok(json!(true)));
    assert_eq!(rpc("getTopicForwardSocket", json!(["YQ=="])).await, Ok(json!(null)));
    assert_eq!(rpc("setTopicForwardSocket", json!(["YQ==", "/x"])).await, Err(-32030));
}

#[tokio::test]
async fn rpc_has_the_methods_that_it_describes() {
    let (servers, _) = served().await;
    let description = servers.rpc("rpc.discover", json!([])).await.unwrap();
    let methods = description["methods"].as_array().unwrap();
    assert!(methods.len() == rpc_methods::method_names().count() && methods.len() >= 25);
    for method in rpc_methods::method_names() {
        // With parameters that fit none of them, all but those without parameters complain.
        assert_ne!(servers.rpc(method, json!([{}])).await, Err(-32601), "{method}");
    }
}

#[tokio::test]
async fn rpc_speaks_json_rpc_2() {
    let (servers, _) = served().await;
    let json_type = "content-type: application/json\r\n";
    let post = async |body: &str| request(servers.rpc, "POST", "/", json_type, body).await;
    let code = |answer: &Value| answer["error"]["code"].as_i64().unwrap();
    let (_, answer) = post("{").await;
    assert_eq!((code(&answer), &answer["id"]), (-32700, &json!(null)));
    for wrong in [r#"{"id":7}"#, r#"{"id":7,"method":"getInfo"}"#, r#"{"jsonrpc":"2.0","id":7}"#] {
        let (_, answer) = post(wrong).await;
        assert_eq!((code(&answer), &answer["id"]), (-32600, &json!(7)), "{wrong}");
    }
    for wrong in ["1", "[]", r#"{"jsonrpc":"2.0","method":"getInfo","id":{}}"#] {
        let (_, answer) = post(wrong).await;
        assert_eq!((code(&answer), &answer["id"]), (-32600, &json!(null)), "{wrong}");
    }
    let many = format!("[{}1]", "1,".repeat(100));
    assert_eq!(code(&post(&many).await.1), -32600);
    let notification = r#"{"jsonrpc":"2.0","method":"getInfo"}"#;
    assert_eq!(post(notification).await, (204, Value::Null));
    let request = r#"{"jsonrpc":"2.0","method":"getInfo","id":"x"}"#;
    let (_, batch) = post(&format!("[{notification},{request},1]")).await;
    assert_eq!(batch.as_array().unwrap().len(), 2);
    assert_eq!((&batch[0]["id"], &batch[1]["error"]["code"]), (&json!("x"), &json!(-32600)));
    let text =
        super::tests::request(servers.rpc, "POST", "/", "content-type: text/plain\r\n", request)
            .await;
    assert_eq!(text.0, 415);
}

#[tokio::test]
async fn rpc_answers_over_a_websocket_as_answers_come() {
    let (servers, _) = served().await;
    let mut stream = TcpStream::connect(servers.rpc).await.unwrap();
    let handshake = format!(
        "GET /rpc HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        servers.rpc
    );
    stream.write_all(handshake.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    // One that waits, then one that does not.
    send_frame(&mut stream, r#"{"jsonrpc":"2.0","id":1,"method":"popMessage","params":[false,2]}"#)
        .await;
    send_frame(&mut stream, r#"{"jsonrpc":"2.0","id":2,"method":"getTopics"}"#).await;
    assert_eq!(receive_frame(&mut stream).await["id"], 2);
    let late = receive_frame(&mut stream).await;
    assert_eq!((&late["id"], &late["result"]), (&json!(1), &json!(null)));
}

/// A text frame as a client sends it, masked with zeros (RFC 6455 5.2).
async fn send_frame(stream: &mut TcpStream, text: &str) {
    let size = u8::try_from(text.len()).unwrap();
    assert!(size < 126);
    let frame = [&[0x81, 0x80 | size, 0, 0, 0, 0], text.as_bytes()].concat();
    stream.write_all(&frame).await.unwrap();
}

async fn receive_frame(stream: &mut TcpStream) -> Value {
    assert_eq!(stream.read_u8().await.unwrap(), 0x81);
    let size = stream.read_u8().await.unwrap();
    assert!(size < 126);
    let mut text = vec![0; usize::from(size)];
    stream.read_exact(&mut text).await.unwrap();
    serde_json::from_slice(&text).unwrap()
}
