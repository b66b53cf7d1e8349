#![allow(clippy::unwrap_used)]
use super::*;

const LIMITS: Limits = Limits { account_concurrency: 10, burst: 5, idle: Duration::from_mins(10) };

fn key(function: &str) -> Key {
    Key { tenant: "t".into(), function: function.into(), number: "$LATEST".into(), revision: "r".into() }
}

struct Place {
    assignment: Assignment,
    now: Instant,
    sandboxes: usize,
}

impl Place {
    fn new() -> Self {
        Self { assignment: Assignment::default(), now: Instant::now(), sandboxes: 0 }
    }

    fn acquire(&self, function: &str, reserved: Option<u32>) -> Result<Got, ApiError> {
        self.assignment.acquire(&key(function), reserved, &LIMITS, self.now)
    }

    fn wait(&self, function: &str) -> (oneshot::Receiver<Assigned>, Wish) {
        match self.acquire(function, None).unwrap() {
            Got::Later(receiver, wish) => (receiver, wish),
            Got::Warm(host) => panic!("{} is idle", host.sandbox),
        }
    }

    fn warm(&self, function: &str) -> Host {
        match self.acquire(function, None).unwrap() {
            Got::Warm(host) => host,
            Got::Later(..) => panic!("none is idle"),
        }
    }

    /// One that was wished for is there, and asks for its first invocation.
    fn started(&mut self, function: &str) -> (Host, bool) {
        self.sandboxes += 1;
        let host = Host::nowhere(&format!("sandbox-{}", self.sandboxes));
        self.assignment.starting(&host.sandbox, &key(function));
        let is_given = self.assignment.free(&host, self.now);
        (host, is_given)
    }

    fn counts(&self) -> Counts {
        self.assignment.counts(&|_| true)
    }
}

fn given(receiver: &mut oneshot::Receiver<Assigned>) -> Option<String> {
    receiver.try_recv().ok().map(|assigned| assigned.unwrap().sandbox)
}

#[test]
fn who_waits_takes_whichever_sandbox_is_free_first() {
    let mut place = Place::new();
    let (mut first, wish) = place.wait("f");
    assert_eq!(wish, Wish::Start);
    let (host, is_given) = place.started("f");
    assert!(is_given);
    assert_eq!(given(&mut first), Some(host.sandbox.clone()));
    // The second waits for one that is started for it, and is given the first, which is free before.
    let (mut second, wish) = place.wait("f");
    assert_eq!(wish, Wish::Start);
    assert!(place.assignment.free(&host, place.now));
    assert_eq!(given(&mut second), Some(host.sandbox.clone()));
    let (late, is_given) = place.started("f");
    assert!(!is_given);
    assert_eq!(place.counts(), Counts { idle: 1, busy: 1, starting: 0, waiting: 0 });
    assert_eq!(place.warm("f").sandbox, late.sandbox);
}

#[test]
fn no_more_start_than_wait() {
    let mut place = Place::new();
    let mut waiting: Vec<_> = (0..4).map(|_| place.wait("f")).collect();
    assert!(waiting.iter().all(|(_, wish)| *wish == Wish::Start));
    for _ in 0..4 {
        place.started("f");
    }
    assert!(waiting.iter_mut().all(|(receiver, _)| given(receiver).is_some()));
    assert_eq!(place.counts(), Counts { idle: 0, busy: 4, starting: 0, waiting: 0 });
}

#[test]
fn limits_of_function_and_account_are_told_apart() {
    let place = Place::new();
    let reason = |result: Result<Got, ApiError>| result.err().unwrap().body()["Reason"].as_str().unwrap().to_owned();
    assert_eq!(reason(place.acquire("f", Some(0))), "ReservedFunctionConcurrentInvocationLimitExceeded");
    let _first = place.acquire("f", Some(1)).unwrap();
    assert_eq!(reason(place.acquire("f", Some(1))), "ReservedFunctionConcurrentInvocationLimitExceeded");
    let _others: Vec<_> = (0..9).map(|number| place.wait(&number.to_string())).collect();
    assert_eq!(reason(place.acquire("g", None)), "ConcurrentInvocationLimitExceeded");
}

#[test]
fn a_burst_starts_so_many_and_the_others_wait_for_those() {
    let mut place = Place::new();
    let wishes: Vec<Wish> = (0..8).map(|_| place.wait("f").1).collect();
    assert_eq!(wishes.iter().filter(|wish| **wish == Wish::Start).count(), LIMITS.burst);
    place.now += Duration::from_secs(11);
    assert_eq!(place.wait("f").1, Wish::Start);
}

#[test]
fn a_start_that_fails_is_told_to_one_and_tried_again_for_the_others() {
    let place = Place::new();
    let (mut first, _) = place.wait("f");
    let (mut second, _) = place.wait("f");
    for sandbox in ["a", "b"] {
        place.assignment.starting(sandbox, &key("f"));
    }
    let failure = StartFailure::new("", "", "why".into());
    let (_, wish) = place.assignment.gone("a", Some(&failure)).unwrap();
    assert_eq!(first.try_recv().unwrap().unwrap_err().payload("any"), "why");
    // The other's own start is on its way.
    assert_eq!(wish, Wish::Nothing);
    assert!(second.try_recv().is_err());
    assert!(place.assignment.gone("a", Some(&failure)).is_none());
}

#[test]
fn a_sandbox_that_is_gone_is_not_given_and_who_waits_gets_another() {
    let mut place = Place::new();
    let (_first, _) = place.wait("f");
    let (host, _) = place.started("f");
    let (mut second, _) = place.wait("f");
    place.assignment.starting("b", &key("f"));
    place.assignment.gone("b", Some(&StartFailure::new("", "", "why".into())));
    assert!(second.try_recv().unwrap().is_err());
    let (_third, _) = place.wait("f");
    let (_, wish) = place.assignment.gone(&host.sandbox, None).unwrap();
    assert_eq!(wish, Wish::Nothing);
    assert!(!place.assignment.free(&host, place.now));
    assert_eq!(place.counts(), Counts { idle: 0, busy: 0, starting: 1, waiting: 1 });
}

#[test]
fn who_has_gone_is_given_nothing() {
    let mut place = Place::new();
    let (first, _) = place.wait("f");
    drop(first);
    let (host, is_given) = place.started("f");
    assert!(!is_given);
    assert_eq!(place.warm("f").sandbox, host.sandbox);
}

#[test]
fn what_is_idle_for_long_or_runs_old_code_is_ended() {
    let mut place = Place::new();
    for function in ["f", "g"] {
        drop(place.wait(function));
        place.started(function);
    }
    let reaped = |place: &Place, is_current: &dyn Fn(&Key) -> bool| -> Vec<String> {
        let reaped = place.assignment.reap(LIMITS.idle, place.now, is_current);
        reaped.into_iter().map(|host| host.sandbox).collect()
    };
    assert!(reaped(&place, &|_| true).is_empty());
    assert_eq!(reaped(&place, &|key| key.function == "f"), ["sandbox-2"]);
    place.now += LIMITS.idle;
    assert_eq!(reaped(&place, &|_| true), ["sandbox-1"]);
    assert_eq!(place.counts(), Counts::default());
}

#[test]
fn what_is_told_twice_counts_once() {
    let mut place = Place::new();
    drop(place.wait("f"));
    let (host, _) = place.started("f");
    for _ in 0..3 {
        assert!(!place.assignment.free(&host, place.now));
    }
    assert_eq!(place.counts(), Counts { idle: 1, ..Counts::default() });
    place.warm("f");
    assert!(place.assignment.gone(&host.sandbox, None).is_some());
    assert!(place.assignment.gone(&host.sandbox, None).is_none());
    assert!(!place.assignment.free(&host, place.now));
    assert_eq!(place.counts(), Counts::default());
}

#[test]
fn nobody_waits_for_what_cannot_be_started() {
    let place = Place::new();
    let (mut first, _) = place.wait("f");
    let (mut second, _) = place.wait("f");
    let failure = StartFailure::new("", "", "gone".into());
    for _ in 0..2 {
        place.assignment.give_up(&key("f"), &failure);
    }
    assert!(first.try_recv().unwrap().is_err() && second.try_recv().unwrap().is_err());
    assert_eq!(place.counts(), Counts::default());
}

#[test]
fn sandboxes_of_a_service_before_are_neither_lost_nor_counted_twice() {
    let place = Place::new();
    place.assignment.expect("idle", &key("f"));
    place.assignment.expect("busy", &key("f"));
    place.assignment.expect("never-comes", &key("f"));
    assert_eq!(place.counts(), Counts { starting: 3, ..Counts::default() });
    place.assignment.free(&Host::nowhere("idle"), place.now);
    place.assignment.adopt_busy(&Host::nowhere("busy"));
    place.assignment.gone("never-comes", None);
    assert_eq!(place.counts(), Counts { idle: 1, busy: 1, ..Counts::default() });
}
