//! Subscriptions against a courier that remembers, and fails when it is told to.

use std::pin::Pin;
use std::time::Duration;

use hostd_grid::ContractId;
use hostd_grid::workload::State;
use tokio::sync::broadcast;
use tokio::time::sleep;

use super::*;
use crate::state::MemoryState;

/// What reached whom: twin, session, sequence, lost, state.
type Seen = (u32, String, u64, u64, &'static str);

#[derive(Default)]
struct TestCourier {
    seen: Mutex<Vec<Seen>>,
    is_slow: Mutex<bool>,
    is_nobody_there: Mutex<bool>,
}

impl TestCourier {
    fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut lock(&self.seen))
    }
}

impl Courier for TestCourier {
    fn deliver<'a>(
        &'a self,
        subscriber: &'a Subscriber,
        event: &'a Event,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(async move {
            if *lock(&self.is_slow) {
                sleep(Duration::from_secs(5)).await;
            }
            let Subscriber { twin, session } = subscriber.clone();
            lock(&self.seen).push((twin, session, event.sequence, event.lost, event.state));
            !*lock(&self.is_nobody_there)
        })
    }
}

fn change(twin: u32, state: State) -> Change {
    Change {
        twin_id: TwinId(twin),
        contract_id: ContractId(5),
        name: "vm".into(),
        kind: WorkloadType::ZMachineLight,
        version: 0,
        state,
        message: String::new(),
        created: 1,
    }
}

struct Bench {
    news: Arc<News>,
    courier: Arc<TestCourier>,
    changes: broadcast::Sender<Change>,
    _running: JoinSet<()>,
}

fn bench(state: &Arc<dyn StateStore>) -> Bench {
    let news = Arc::new(News::new(Arc::clone(state)));
    let courier = Arc::new(TestCourier::default());
    let (changes, receiver) = broadcast::channel(8);
    let mut running = JoinSet::new();
    running.spawn(Arc::clone(&news).run(receiver, Arc::clone(&courier) as Arc<dyn Courier>));
    Bench { news, courier, changes, _running: running }
}

fn state() -> Arc<dyn StateStore> {
    Arc::new(MemoryState::default())
}

async fn a_moment() {
    sleep(Duration::from_millis(10)).await;
}

#[tokio::test(start_paused = true)]
async fn owners_who_ask_hear_of_their_own_and_of_nothing_else() {
    let state = state();
    let Bench { news, courier, changes, _running } = bench(&state);
    changes.send(change(1, State::Init)).unwrap();
    a_moment().await;
    news.subscribe(TwinId(1), "", None).unwrap();
    news.subscribe(TwinId(1), "phone", Some(60)).unwrap();
    for (twin, state) in [(1, State::Ok), (2, State::Error), (1, State::Paused)] {
        changes.send(change(twin, state)).unwrap();
        a_moment().await;
    }
    let mut seen = courier.take();
    seen.sort();
    let phone = "phone".to_owned();
    let expected = [
        (1, String::new(), 1, 0, "ok"),
        (1, String::new(), 2, 0, "paused"),
        (1, phone.clone(), 1, 0, "ok"),
        (1, phone, 2, 0, "paused"),
    ];
    assert_eq!(seen, expected);
    news.unsubscribe(TwinId(1), "phone");
    changes.send(change(1, State::Ok)).unwrap();
    a_moment().await;
    assert_eq!(courier.take(), [(1, String::new(), 3, 0, "ok")]);

    // A node that starts anew goes on with whom it told.
    let Bench { courier, changes, _running, .. } = bench(&state);
    changes.send(change(1, State::Deleted)).unwrap();
    a_moment().await;
    assert_eq!(courier.take(), [(1, String::new(), 1, 0, "deleted")]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_owner_misses_the_oldest_and_is_told_how_many() {
    let Bench { news, courier, changes, _running } = bench(&state());
    news.subscribe(TwinId(1), "", None).unwrap();
    *lock(&courier.is_slow) = true;
    let count = u64::try_from(QUEUE_COUNT_MAX).unwrap() + 11;
    for _ in 0..count {
        changes.send(change(1, State::Ok)).unwrap();
        a_moment().await;
    }
    *lock(&courier.is_slow) = false;
    sleep(Duration::from_secs(60)).await;
    let seen = courier.take();
    // The first was under way, and ten found no room behind it.
    assert_eq!(seen.len(), QUEUE_COUNT_MAX + 1);
    assert_eq!(seen.iter().map(|seen| seen.3).sum::<u64>(), 10);
    assert_eq!(seen.last().unwrap().2, count);
    assert!(seen.is_sorted_by_key(|seen| seen.2));
}

#[tokio::test(start_paused = true)]
async fn nobody_is_told_for_ever_who_does_not_answer() {
    let Bench { news, courier, changes, _running } = bench(&state());
    news.subscribe(TwinId(1), "", None).unwrap();
    *lock(&courier.is_nobody_there) = true;
    for _ in 0..2 * FAILURE_COUNT_MAX {
        changes.send(change(1, State::Ok)).unwrap();
        a_moment().await;
    }
    assert_eq!(courier.take().len(), usize::try_from(FAILURE_COUNT_MAX).unwrap());
    assert!(news.subscriptions().is_empty());
}

#[test]
fn there_are_only_so_many_subscriptions_for_so_long() {
    let news = News::new(state());
    for number in 0..COUNT_PER_TWIN_MAX {
        news.subscribe(TwinId(1), &number.to_string(), None).unwrap();
    }
    let refusal = |twin, session: &str, seconds| {
        news.subscribe(TwinId(twin), session, seconds).unwrap_err().to_string()
    };
    assert_eq!(refusal(1, "one more", None), "twin 1 has 4 subscriptions here already");
    let begin = now();
    assert!(news.subscribe(TwinId(1), "0", Some(TIME_MAX)).unwrap() >= begin + TIME_MAX);
    for seconds in [0, -1, TIME_MAX + 1] {
        let text = refusal(2, "", Some(seconds));
        assert_eq!(text, format!("a subscription lasts 1 to 86400 seconds, not {seconds}"));
    }
    let text = refusal(2, &"x".repeat(65), None);
    assert_eq!(text, "a session's name has at most 64 bytes, and this one 65");
    for twin in 2..u32::try_from(COUNT_MAX - COUNT_PER_TWIN_MAX).unwrap() + 2 {
        news.subscribe(TwinId(twin), "", None).unwrap();
    }
    assert_eq!(refusal(9999, "", None), "this node has 1024 subscriptions already");
}
