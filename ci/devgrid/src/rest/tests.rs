//! The proxy as a client sees it: requests in, JSON out.

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt as _;
use tower_service::Service as _;

use super::*;
use crate::index::samples::tables;

async fn get_response(path: &str) -> Response {
    let index = Arc::new(Index::default());
    *index.write() = tables();
    let request = Request::get(path).body(Body::empty()).unwrap();
    router(index).call(request).await.unwrap()
}

async fn ask(path: &str) -> Value {
    let response = get_response(path).await;
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{path}: {error}: {bytes:?}"))
}

/// The numbers of the rows that `path` answers with.
async fn ids(path: &str, field: &str) -> Vec<u64> {
    let rows = ask(path).await;
    let rows = rows.as_array().unwrap_or_else(|| panic!("{path}: {rows}"));
    rows.iter().map(|row| row[field].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn nodes_are_found_by_what_they_are() {
    for (query, expected) in [
        ("", vec![1, 2, 3]),
        ("status=up", vec![1]),
        ("status=up,standby", vec![1, 3]),
        ("total_cru=16", vec![2, 3]),
        // Node 1 has 4 GiB of its 16 in use.
        ("free_mru=13958643712", vec![2, 3]),
        ("ipv4=true&domain=true", vec![1]),
        ("ipv6=true", vec![]),
        ("country=egypt", vec![2]),
        ("farm_ids=1", vec![1, 3]),
        ("farm_id=2&size=0", vec![2]),
        ("farm_name=farm-2", vec![2]),
        ("rented=true", vec![2]),
        ("rented_by=5", vec![2]),
        ("rented_by=6", vec![]),
        ("available_for=5", vec![1, 2, 3]),
        ("available_for=6", vec![1, 3]),
        ("rentable=true", vec![3]),
        ("rentable_or_rented_by=5", vec![2, 3]),
        ("free_ips=1", vec![1, 3]),
        ("has_gpu=true", vec![]),
        ("features=zmachine-light,network-light", vec![1, 3]),
        ("features=teleport", vec![]),
        ("sort_by=total_cru&sort_order=desc", vec![3, 2, 1]),
        ("size=2&page=2", vec![3]),
        ("something_new=7", vec![1, 2, 3]),
    ] {
        assert_eq!(ids(&format!("/nodes?{query}"), "nodeId").await, expected, "{query}");
    }
    assert_eq!(ids("/gateways", "nodeId").await, [1]);
}

#[tokio::test]
async fn farms_are_found_by_what_they_and_their_nodes_are() {
    for (query, expected) in [
        ("", vec![1, 2]),
        ("free_ips=1", vec![1]),
        ("total_ips=3", vec![]),
        ("dedicated=true", vec![2]),
        ("name_contains=ARM-1", vec![1]),
        ("node_status=up", vec![1, 2]),
        ("node_total_cru=20", vec![1]),
        ("country=Egypt", vec![2]),
        ("sort_by=name&sort_order=desc", vec![2, 1]),
    ] {
        assert_eq!(ids(&format!("/farms?{query}"), "farmId").await, expected, "{query}");
    }
    assert_eq!(ids("/public_ips?free=true", "contract_id").await, [0]);
}

#[tokio::test]
async fn contracts_are_found_by_what_they_are_about() {
    for (query, expected) in [
        ("", vec![1, 2, 3]),
        ("type=node", vec![1]),
        ("name=web", vec![2]),
        ("state=GracePeriod,Deleted", vec![2]),
        ("node_id=2", vec![3]),
        ("number_of_public_ips=1", vec![1]),
        ("deployment_hash=0123456789abcdef0123456789abcdef", vec![1]),
        ("twin_id=5&sort_by=created_at&sort_order=desc", vec![3, 2, 1]),
    ] {
        assert_eq!(ids(&format!("/contracts?{query}"), "contract_id").await, expected, "{query}");
    }
    assert_eq!(ask("/contracts/1/bills").await[0]["amountBilled"], 12, "the newest first");
}

#[tokio::test]
async fn lists_are_counted_when_asked() {
    let response = get_response("/nodes?ret_count=true&size=2").await;
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!([header("count"), header("size"), header("pages")], ["3", "2", "2"]);
    assert!(!get_response("/nodes?size=2").await.headers().contains_key("count"));
}

#[tokio::test]
async fn one_node_has_its_capacity_in_one_place() {
    let node = ask("/nodes/1").await;
    assert_eq!(node["capacity"]["used_resources"]["cru"], 2);
    assert_eq!(node["total_resources"], Value::Null);
    assert_eq!(ask("/nodes/3/status").await, json!({ "status": "standby" }));
    assert_eq!(ask("/nodes/1/statistics").await["users"]["deployments"], 1);
}

#[tokio::test]
async fn what_is_absent_or_senseless_is_said() {
    for (path, status) in [
        ("/nodes/9", StatusCode::NOT_FOUND),
        ("/contracts/9", StatusCode::NOT_FOUND),
        ("/twins/9/consumption", StatusCode::NOT_FOUND),
        ("/nodes?size=10001", StatusCode::BAD_REQUEST),
        ("/nodes?free_mru=-1", StatusCode::BAD_REQUEST),
        ("/nodes?sort_by=colour", StatusCode::BAD_REQUEST),
        ("/nodes/x", StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(get_response(path).await.status(), status, "{path}");
    }
}

#[tokio::test]
async fn twins_and_totals_are_told() {
    let twin = ask("/twins?twin_id=2").await;
    assert_eq!(twin[0]["accountId"], "5Account2");
    assert_eq!(twin[0]["publicKey"], format!("0x{}", "02".repeat(33)));
    let spent = ask("/twins/5/consumption").await;
    assert_eq!(spent["overall_consumption"], 42.0 / 1e7);
    assert_eq!(spent["last_hour_consumption"], 12.0 / 1e7);
    let stats = ask("/stats").await;
    assert_eq!(stats["nodes"], 3);
    assert_eq!(stats["gateways"], 1);
    assert_eq!(stats["nodesDistribution"], json!({ "Belgium": 2, "Egypt": 1 }));
    assert_eq!(ask("/stats?status=up").await["totalCru"], 8);
}
