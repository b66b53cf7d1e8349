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

    fn acquire(&self, function: &str) -> Result<Got, ApiError> {
        self.assignment.acquire(&key(function), &LIMITS, self.now)
    }

    fn set_aside(&self, function: &str, reserved: Option<u32>, provisioned: u32) {
        self.assignment.set_aside("t", function, Aside { reserved, provisioned });
    }

    fn wait(&self, function: &str) -> (oneshot::Receiver<Assigned>, Wish, u64) {
        match self.acquire(function).unwrap() {
            Got::Later(receiver, wish, ticket) => (receiver, wish, ticket),
            Got::Warm(host) => panic!("{} is idle", host.sandbox),
        }
    }

    fn still_waits(&self, function: &str, ticket: u64) -> StillWaits {
        self.assignment.still_waits(&key(function), ticket, &LIMITS, self.now)
    }

    fn warm(&self, function: &str) -> Host {
        match self.acquire(function).unwrap() {
            Got::Warm(host) => host,
            Got::Later(..) => panic!("none is idle"),
        }
    }

    /// One that was wished for is there, and asks for its first invocation.
    fn started(&mut self, function: &str) -> (Host, bool) {
        self.sandboxes += 1;
        let host = Host::nowhere(&format!("sandbox-{}", self.sandboxes));
        self.assignment.starting(&host.sandbox, &key(function), false);
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
    let (mut first, wish, _) = place.wait("f");
    assert_eq!(wish, Wish::Start);
    let (host, is_given) = place.started("f");
    assert!(is_given);
    assert_eq!(given(&mut first), Some(host.sandbox.clone()));
    // The second waits for one that is started for it, and is given the first, which is free before.
    let (mut second, wish, _) = place.wait("f");
    assert_eq!(wish, Wish::Start);
    assert!(place.assignment.free(&host, place.now));
    assert_eq!(given(&mut second), Some(host.sandbox.clone()));
    let (late, is_given) = place.started("f");
    assert!(!is_given);
    assert_eq!(place.counts(), Counts { idle: 1, busy: 1, ..Counts::default() });
    assert_eq!(place.warm("f").sandbox, late.sandbox);
}

#[test]
fn no_more_start_than_wait() {
    let mut place = Place::new();
    let mut waiting: Vec<_> = (0..4).map(|_| place.wait("f")).collect();
    assert!(waiting.iter().all(|(_, wish, _)| *wish == Wish::Start));
    for _ in 0..4 {
        place.started("f");
    }
    assert!(waiting.iter_mut().all(|(receiver, ..)| given(receiver).is_some()));
    assert_eq!(place.counts(), Counts { busy: 4, ..Counts::default() });
}

#[test]
fn one_that_has_answered_is_waited_for_before_another_is_started() {
    let mut place = Place::new();
    let (mut first, ..) = place.wait("f");
    let (host, _) = place.started("f");
    assert!(given(&mut first).is_some());
    place.assignment.answered(&host.sandbox, place.now);
    assert_eq!(place.counts(), Counts { answered: 1, ..Counts::default() });
    let (mut second, wish, _) = place.wait("f");
    assert_eq!(wish, Wish::Nothing);
    assert!(place.assignment.overdue(LIMITS.burst, place.now).is_empty());
    assert!(place.assignment.free(&host, place.now));
    assert_eq!(given(&mut second), Some(host.sandbox.clone()));
    // One that does not ask soon is waited for no longer, and a second caller gets another at once.
    place.assignment.answered(&host.sandbox, place.now);
    let (_third, wish, ticket) = place.wait("f");
    assert_eq!(wish, Wish::Nothing);
    assert_eq!(place.wait("f").1, Wish::Start);
    assert!(matches!(place.still_waits("f", ticket), StillWaits::Shortly));
    place.now += RETURNS_WITHIN;
    assert!(matches!(place.still_waits("f", ticket), StillWaits::Long(1)));
    assert!(matches!(place.still_waits("f", ticket), StillWaits::Long(0)));
    assert_eq!(place.counts(), Counts { answered: 1, starting: 2, waiting: 2, ..Counts::default() });
    // What is told late or twice changes nothing.
    place.assignment.answered(&host.sandbox, place.now);
    place.assignment.answered("nobody", place.now);
    assert_eq!(place.counts(), Counts { answered: 1, starting: 2, waiting: 2, ..Counts::default() });
    assert!(place.assignment.gone(&host.sandbox, None).is_some());
    assert_eq!(place.counts(), Counts { starting: 2, waiting: 2, ..Counts::default() });
    assert!(matches!(place.still_waits("nothing", ticket), StillWaits::Given));
}

#[test]
fn one_that_has_answered_counts_until_it_is_free_but_for_a_moment() {
    let mut place = Place::new();
    place.set_aside("f", Some(1), 0);
    drop(place.wait("f"));
    let (host, _) = place.started("f");
    place.warm("f");
    assert!(place.acquire("f").is_err());
    place.assignment.answered(&host.sandbox, place.now);
    // Whoever comes at once may have it, and nobody else.
    let (mut next, wish, _) = place.wait("f");
    assert_eq!(wish, Wish::Nothing);
    assert!(place.acquire("f").is_err());
    assert!(place.assignment.free(&host, place.now));
    assert_eq!(given(&mut next), Some(host.sandbox.clone()));
    // Where it is not free soon, who waits is refused as if it had just come, and is in nobody's way.
    place.assignment.answered(&host.sandbox, place.now);
    let (mut refused, _, ticket) = place.wait("f");
    place.now += RETURNS_WITHIN;
    assert!(matches!(place.still_waits("f", ticket), StillWaits::Refused(_)));
    assert!(matches!(place.still_waits("f", ticket), StillWaits::Given));
    assert!(refused.try_recv().is_err());
    assert!(place.acquire("f").is_err());
    assert_eq!(place.counts(), Counts { answered: 1, ..Counts::default() });
    assert_eq!(place.assignment.gone(&host.sandbox, None).unwrap().1, Wish::Nothing);
    assert_eq!(place.counts(), Counts::default());
    // Nothing of it is counted any more.
    assert_eq!(place.wait("f").1, Wish::Start);
}

#[test]
fn what_has_answered_counts_for_the_account() {
    let mut place = Place::new();
    let hosts: Vec<Host> = (0..10)
        .map(|_| {
            drop(place.wait("f"));
            let host = place.started("f").0;
            place.warm("f");
            host
        })
        .collect();
    for host in &hosts {
        place.assignment.answered(&host.sandbox, place.now);
    }
    assert!(place.acquire("g").is_err(), "another function has nothing of what is about to be free");
    place.now += RETURNS_WITHIN;
    assert!(place.acquire("f").is_err());
    place.assignment.gone(&hosts[0].sandbox, None);
    assert!(place.acquire("g").is_ok());
}

#[test]
fn limits_of_function_and_account_are_told_apart() {
    let place = Place::new();
    let reason = |result: Result<Got, ApiError>| result.err().unwrap().body()["Reason"].as_str().unwrap().to_owned();
    place.set_aside("f", Some(0), 0);
    assert_eq!(reason(place.acquire("f")), "ReservedFunctionConcurrentInvocationLimitExceeded");
    place.set_aside("f", Some(1), 0);
    let _first = place.acquire("f").unwrap();
    assert_eq!(reason(place.acquire("f")), "ReservedFunctionConcurrentInvocationLimitExceeded");
    let _others: Vec<_> = (0..9).map(|number| place.wait(&number.to_string())).collect();
    assert_eq!(reason(place.acquire("g")), "ConcurrentInvocationLimitExceeded");
}

#[test]
fn what_is_set_aside_is_nobody_elses() {
    let place = Place::new();
    let is_refused = |function: &str| place.acquire(function).is_err();
    place.set_aside("reserved", Some(4), 0);
    place.set_aside("kept", None, 3);
    // Three are left for all.
    let _shared: Vec<_> = (0..3).map(|_| place.wait("shared")).collect();
    assert!(is_refused("shared") && is_refused("other"));
    let _reserved: Vec<_> = (0..4).map(|_| place.wait("reserved")).collect();
    assert!(is_refused("reserved"));
    let _kept: Vec<_> = (0..3).map(|_| place.wait("kept")).collect();
    // Beyond what is kept it shares, of which there is nothing.
    assert!(is_refused("kept"));
    place.set_aside("reserved", None, 0);
    assert!(is_refused("reserved"));
    place.set_aside("kept", None, 0);
    assert!(is_refused("kept"));
}

#[test]
fn a_burst_starts_so_many_and_the_others_wait_for_those() {
    let mut place = Place::new();
    let wishes: Vec<Wish> = (0..8).map(|_| place.wait("f").1).collect();
    assert_eq!(wishes.iter().filter(|wish| **wish == Wish::Start).count(), LIMITS.burst);
    assert!(place.assignment.overdue(LIMITS.burst, place.now).is_empty());
    place.now += Duration::from_secs(11);
    // Those who waited, and no more than they are.
    assert_eq!(place.assignment.overdue(LIMITS.burst, place.now), [key("f"), key("f"), key("f")]);
    assert!(place.assignment.overdue(LIMITS.burst, place.now).is_empty());
    assert_eq!(place.wait("f").1, Wish::Start);
}

#[test]
fn what_is_started_to_be_kept_is_waited_for_by_nobody() {
    let place = Place::new();
    assert_eq!(place.assignment.provision(&key("f"), 2, 8), 2);
    place.assignment.starting("kept", &key("f"), true);
    assert_eq!(place.wait("f").1, Wish::Start);
    // One that did not begin was for nobody.
    assert_eq!(place.assignment.gone("kept", None).unwrap().1, Wish::Nothing);
}

#[test]
fn a_start_that_fails_is_told_to_one_and_tried_again_for_the_others() {
    let place = Place::new();
    let (mut first, ..) = place.wait("f");
    let (mut second, ..) = place.wait("f");
    for sandbox in ["a", "b"] {
        place.assignment.starting(sandbox, &key("f"), false);
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
    let (_first, ..) = place.wait("f");
    let (host, _) = place.started("f");
    let (mut second, ..) = place.wait("f");
    place.assignment.starting("b", &key("f"), false);
    place.assignment.gone("b", Some(&StartFailure::new("", "", "why".into())));
    assert!(second.try_recv().unwrap().is_err());
    let (_third, ..) = place.wait("f");
    let (_, wish) = place.assignment.gone(&host.sandbox, None).unwrap();
    assert_eq!(wish, Wish::Nothing);
    assert!(!place.assignment.free(&host, place.now));
    assert_eq!(place.counts(), Counts { starting: 1, waiting: 1, ..Counts::default() });
}

#[test]
fn who_has_gone_is_given_nothing() {
    let mut place = Place::new();
    let (first, ..) = place.wait("f");
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
        let reaped = place.assignment.reap(LIMITS.idle, place.now, &|key| is_current(key).then_some(0));
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
    let (mut first, ..) = place.wait("f");
    let (mut second, ..) = place.wait("f");
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
    place.assignment.expect("idle", &key("f"), false);
    place.assignment.expect("busy", &key("f"), false);
    place.assignment.expect("never-comes", &key("f"), false);
    assert_eq!(place.counts(), Counts { starting: 3, ..Counts::default() });
    place.assignment.free(&Host::nowhere("idle"), place.now);
    place.assignment.adopt_busy(&Host::nowhere("busy"));
    place.assignment.gone("never-comes", None);
    assert_eq!(place.counts(), Counts { idle: 1, busy: 1, ..Counts::default() });
}

#[test]
fn what_is_kept_is_taken_first_and_not_ended() {
    let mut place = Place::new();
    drop(place.wait("f"));
    let (on_demand, _) = place.started("f");
    assert_eq!((place.assignment.provision(&key("f"), 3, 2), place.assignment.provision(&key("f"), 3, 2)), (2, 1));
    assert_eq!(place.assignment.provision(&key("f"), 3, 2), 0);
    for sandbox in ["a", "b", "c"] {
        place.assignment.starting(sandbox, &key("f"), true);
        assert_eq!(place.assignment.provisioned(&key("f")).0, 3);
    }
    for sandbox in ["a", "b"] {
        place.assignment.free(&Host::nowhere(sandbox), place.now);
    }
    assert_eq!(place.assignment.provisioned(&key("f")), (3, 2));
    assert_eq!((place.warm("f").sandbox, place.warm("f").sandbox), ("b".into(), "a".into()));
    assert_eq!(place.assignment.provisioned(&key("f")), (3, 2));
    assert_eq!(place.warm("f").sandbox, on_demand.sandbox);
    for host in [Host::nowhere("a"), Host::nowhere("b"), Host::nowhere("c"), on_demand] {
        place.assignment.free(&host, place.now);
    }
    place.now += 2 * LIMITS.idle;
    let reap = |place: &Place, kept| {
        let reaped = place.assignment.reap(LIMITS.idle, place.now, &|_| kept);
        reaped.into_iter().map(|host| host.sandbox).collect::<Vec<_>>()
    };
    assert_eq!(reap(&place, Some(3)), ["sandbox-1"]);
    assert!(reap(&place, Some(3)).is_empty());
    // One that ends is missed, and one that is not wanted any more is not.
    place.assignment.gone("c", None);
    assert_eq!(place.assignment.provision(&key("f"), 3, 8), 1);
    place.assignment.starting("d", &key("f"), true);
    place.assignment.gone("d", Some(&StartFailure::new("", "", "why".into())));
    assert_eq!(reap(&place, Some(1)).len(), 1);
    assert_eq!(place.assignment.provisioned(&key("f")), (1, 1));
    assert_eq!(reap(&place, None).len(), 1);
    assert_eq!(place.counts(), Counts::default());
}

proptest::proptest! {
    #[test]
    fn what_is_counted_is_what_there_is(steps in proptest::collection::vec((0_u8..10, 0_u8..6), 0..200)) {
        let place = Place::new();
        let mut waiting = Vec::new();
        let name = |number: u8| format!("s{number}");
        for (what, which) in steps {
            let function = key(if which % 2 == 0 { "f" } else { "g" });
            match what {
                0 | 1 => if let Ok(Got::Later(receiver, _, ticket)) = place.assignment.acquire(&function, &LIMITS, place.now) {
                    waiting.push((receiver, function, ticket));
                },
                2 => if !place.assignment.lock().of.contains_key(&name(which)) {
                    place.assignment.expect(&name(which), &function, which > 3);
                },
                3 => drop(place.assignment.free(&Host::nowhere(&name(which)), place.now)),
                4 => drop(place.assignment.gone(&name(which), Some(&StartFailure::new("", "", "why".into())))),
                5 => drop(waiting.pop()),
                8 => if let Some((_, function, ticket)) = waiting.last() {
                    drop(place.assignment.still_waits(function, *ticket, &LIMITS, place.now + u32::from(which % 3) * RETURNS_WITHIN));
                },
                7 => place.assignment.answered(&name(which), place.now),
                6 => place.assignment.set_aside("t", &function.function, Aside { reserved: (which > 2).then_some(u32::from(which)), provisioned: 2 }),
                _ => drop(place.assignment.reap(LIMITS.idle, place.now + LIMITS.idle, &|_| Some(1))),
            }
            let counts = place.counts();
            let state = place.assignment.lock();
            proptest::prop_assert_eq!(state.usage.in_use(), counts.busy + counts.answered + counts.waiting);
            let kept = state.of.values().filter(|member| member.is_provisioned).count();
            proptest::prop_assert_eq!(state.pools.values().map(|pool| pool.provisioned).sum::<usize>(), kept);
        }
    }
}
