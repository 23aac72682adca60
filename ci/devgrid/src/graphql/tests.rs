//! Queries as stock clients send them.

use serde_json::{Value as Json, json};

use super::*;
use crate::index::samples::tables;

async fn ask_with(query: &str, variables: Json) -> Json {
    let index = Arc::new(Index::default());
    *index.write() = tables();
    let request = Request::new(query).variables(Variables::from_json(variables));
    serde_json::to_value(schema(index).unwrap().execute(request).await).unwrap()
}

async fn ask(query: &str) -> Json {
    let mut answer = ask_with(query, json!({})).await;
    assert_eq!(answer.get("errors"), None, "{query}: {answer}");
    answer["data"].take()
}

#[tokio::test]
async fn a_client_counts_and_then_lists_its_contracts() {
    let options = "(where: {twinID_eq: 5, state_in: [Created, GracePeriod]}, orderBy: twinID_ASC)";
    let count = ask(&format!(
        "query {{ items: nodeContractsConnection{options} {{ count: totalCount }} }}"
    ))
    .await;
    assert_eq!(count, json!({ "items": { "count": 1 } }));

    let answer = ask_with(
        "query getContracts($nameCount: Int!, $nodeCount: Int!, $rentCount: Int!) {
            nameContracts(where: {twinID_eq: 5, state_in: [Created, GracePeriod]}, limit: $nameCount)
                { contractID createdAt name solutionProviderID state twinID }
            nodeContracts(where: {twinID_eq: 5, state_in: [Created, GracePeriod]}, limit: $nodeCount)
                { contractID deploymentData state nodeID numberOfPublicIPs }
            rentContracts(where: {twinID_eq: 5, state_in: [Created, GracePeriod]}, limit: $rentCount)
                { contractID nodeID }
        }",
        json!({ "nameCount": 1, "nodeCount": 1, "rentCount": 1 }),
    )
    .await;
    let data = &answer["data"];
    assert_eq!(data["nameContracts"][0]["name"], "web", "{answer}");
    assert_eq!(data["nameContracts"][0]["state"], "GracePeriod");
    assert_eq!(data["nodeContracts"][0]["contractID"], "1", "large numbers are texts");
    assert_eq!(data["nodeContracts"][0]["numberOfPublicIPs"], 1);
    assert_eq!(data["rentContracts"][0]["nodeID"], 2);
}

#[tokio::test]
async fn a_client_asks_for_its_last_bills() {
    let query = "query getConsumption($contractId: BigInt!) {
        contractBillReports(where: {contractID_eq: $contractId}, limit: 2, orderBy: timestamp_DESC)
            { amountBilled timestamp discountReceived }
        nodeContracts(where: {contractID_eq: $contractId}) { createdAt } }";
    // Clients send the number bare or as text.
    for id in [json!(1), json!("1")] {
        let answer = ask_with(query, json!({ "contractId": id })).await;
        let bills = &answer["data"]["contractBillReports"];
        assert_eq!(bills[0]["amountBilled"], "12", "{answer}");
        assert_eq!(bills[1]["amountBilled"], "30");
        assert_eq!(answer["data"]["nodeContracts"].as_array().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_client_finds_a_nodes_twin_and_access_nodes() {
    let query =
        "query getNodeTwinId($nodeId: Int!){ nodes(where: { nodeID_eq: $nodeId }) { twinID } }";
    let answer = ask_with(query, json!({ "nodeId": 2 })).await;
    assert_eq!(answer["data"], json!({ "nodes": [{ "twinID": 3 }] }));

    let nodes = ask("{ nodes(where: {country_not_eq: \"Egypt\"}, orderBy: [nodeID_DESC]) {
        nodeID location { latitude } resourcesTotal { cru } publicConfig { ipv4 ipv6 }
        interfaces { name ips } } publicConfigs(where: {ipv4_isNull: false}) { domain } }")
    .await;
    assert_eq!(nodes["nodes"][0]["nodeID"], 3);
    assert_eq!(nodes["nodes"][0]["publicConfig"], Json::Null);
    assert_eq!(nodes["nodes"][1]["publicConfig"], json!({ "ipv4": "185.0.1.9/24", "ipv6": null }));
    assert_eq!(nodes["nodes"][1]["resourcesTotal"]["cru"], "8");
    assert_eq!(nodes["publicConfigs"], json!([{ "domain": "gent.example.com" }]));
    assert_eq!(ask("query { __typename }").await, json!({ "__typename": "Query" }));
}

#[tokio::test]
async fn conditions_are_joined_and_pages_turned() {
    for (condition, expected) in [
        ("{nodeID_gt: 1, nodeID_lte: 3}", vec![2, 3]),
        ("{OR: [{nodeID_eq: 1}, {country_startsWith: \"Eg\"}]}", vec![1, 2]),
        ("{nodeID_eq: 3, OR: {nodeID_eq: 1}}", vec![1, 3]),
        ("{AND: [{nodeID_in: [1, 2]}, {nodeID_not_in: [2]}]}", vec![1]),
        ("{country_containsInsensitive: \"BELG\"}", vec![1, 3]),
        ("{country_not_contains: \"Belg\"}", vec![2]),
        ("{virtualized_eq: true}", vec![]),
        ("{extraFee_gte: 1}", vec![]),
    ] {
        let answer = ask(&format!("{{ nodes(where: {condition}) {{ nodeID }} }}")).await;
        let ids: Vec<_> =
            answer["nodes"].as_array().unwrap().iter().map(|node| node["nodeID"].clone()).collect();
        assert_eq!(ids, expected, "{condition}");
    }
    let page = ask("{ twins(limit: 2, offset: 3) { twinID } }").await;
    assert_eq!(page, json!({ "twins": [{ "twinID": 4 }, { "twinID": 5 }] }));
    let farms = ask("{ farms(where: {farmID_eq: 1}) { publicIPs { ip contractId } } }").await;
    assert_eq!(farms["farms"][0]["publicIPs"][0]["contractId"], "1");
}

#[tokio::test]
async fn what_is_senseless_or_too_much_is_refused() {
    let (open, close) = ("{AND: ".repeat(9), "}".repeat(9));
    let deep = format!("{{ nodes(where: {open}{{nodeID_eq: 1}}{close}) {{ nodeID }} }}");
    let many = format!(
        "{{ {} }}",
        (0..1200).map(|n| format!("a{n}: nodes {{ nodeID }} ")).collect::<String>()
    );
    for query in [
        "{ nodes(where: {colour_eq: 1}) { nodeID } }",
        "{ nodes(limit: 1000000) { nodeID } }",
        "{ nodes(limit: -1) { nodeID } }",
        "{ nodes { secrets } }",
        "{ nodes(where: {extraFee_eq: \"many\"}) { nodeID } }",
        "mutation { nodes }",
        "{",
        &deep,
        &many,
    ] {
        let answer = ask_with(query, json!({})).await;
        assert!(answer["errors"].is_array(), "{query}: {answer}");
    }
}
