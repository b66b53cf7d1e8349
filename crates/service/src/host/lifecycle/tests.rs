#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

const BOTH: Wanted = Wanted { invoke: true, shutdown: true };
const INVOKE: Wanted = Wanted { invoke: true, shutdown: false };
const SHUTDOWN: Wanted = Wanted { invoke: false, shutdown: true };

fn invocation(id: &str) -> Invocation {
    Invocation {
        id: id.into(),
        deadline_ms: 1,
        arn: "arn".into(),
        trace: None,
        client_context: None,
        wants_tail: false,
    }
}

fn kind<T: std::fmt::Debug>(result: Result<T, Refusal>) -> &'static str {
    result.unwrap_err().kind
}

#[test]
fn without_extensions_the_runtime_alone_counts() {
    let mut all = Lifecycle::default();
    assert!(!all.has_begun() && all.are_all_registered());
    assert_eq!(all.runtime_asks(), Ok(Some(1)));
    // Asking again, it is the same question.
    assert_eq!(all.runtime_asks(), Ok(None));
    all.give(invocation("a"), Bytes::from_static(b"x"));
    assert!(!all.is_free() && all.invocation().unwrap().id == "a");
    assert_eq!(all.take_invocation(Instant::now()).unwrap().1, "x");
    assert!(all.take_invocation(Instant::now()).is_none());
    assert_eq!(all.runtime_asks(), Err(()));
    assert!(all.finish("b").is_none() && all.is_at("a") && all.finish("a").is_some() && all.finish("a").is_none());
    assert_eq!(all.runtime_asks(), Ok(Some(2)));
}

#[test]
fn the_last_who_asks_makes_the_sandbox_free() {
    let mut all = Lifecycle::default();
    assert!(all.launched("outer"));
    assert!(!all.are_all_registered());
    let outer = all.register("outer", BOTH).unwrap();
    let quiet = {
        assert!(all.launched("quiet"));
        all.register("quiet", SHUTDOWN).unwrap()
    };
    assert!(all.are_all_registered());
    let inner = all.register("inner", INVOKE).unwrap();
    assert_eq!(kind(all.register("outer", BOTH)), "Extension.InvalidExtensionState");
    assert_eq!(kind(all.register("inner", INVOKE)), "Extension.InvalidExtensionState");
    assert_eq!(kind(all.register("other", BOTH)), "Extension.InvalidEventType");
    assert_eq!(all.runtime_asks(), Ok(None));
    assert_eq!(kind(all.register("late", INVOKE)), "Extension.RegistrationClosed");
    assert_eq!(all.extension_asks(&outer), Ok(None));
    assert_eq!(all.extension_asks(&quiet), Ok(None));
    assert!(!all.has_begun());
    assert_eq!(all.extension_asks(&inner), Ok(Some(1)));
    all.give(invocation("a"), Bytes::new());
    // Whoever wants to know of it is told once, in whichever order they come; the sandbox is free when all have asked again.
    assert!(matches!(all.take_event(&inner), Some(Event::Invoke(one)) if one.id == "a"));
    assert!(all.take_event(&inner).is_none() && all.take_event(&quiet).is_none());
    assert_eq!(all.extension_asks(&inner), Ok(None));
    assert!(all.take_invocation(Instant::now()).is_some() && all.finish("a").is_some());
    assert_eq!(all.runtime_asks(), Ok(None));
    // It has not taken the event yet.
    assert_eq!(all.extension_asks(&outer), Ok(None));
    assert!(all.take_event(&outer).is_some());
    assert_eq!(all.extension_asks(&outer), Ok(Some(2)));
    assert_eq!(kind(all.extension_asks("nobody")), "Extension.UnknownExtensionIdentifier");
}

#[test]
fn the_end_is_told_to_external_extensions_that_want_to_know() {
    let mut all = Lifecycle::default();
    for name in ["both", "invoke"] {
        assert!(all.launched(name));
    }
    let both = all.register("both", BOTH).unwrap();
    let invoke = all.register("invoke", INVOKE).unwrap();
    let inner = all.register("inner", INVOKE).unwrap();
    let _ = all.runtime_asks();
    for id in [&both, &invoke, &inner] {
        let _ = all.extension_asks(id);
    }
    assert!(all.is_free());
    assert!(all.end(Reason::Spindown) && !all.end(Reason::Failure) && !all.is_free());
    assert!(all.tell_of_end(Reason::Spindown, 7) && all.is_end_awaited());
    assert!(all.take_event(&invoke).is_none() && all.take_event(&inner).is_none());
    assert!(matches!(all.take_event(&both), Some(Event::Shutdown { reason: Reason::Spindown, deadline_ms: 7 })));
    assert!(all.is_end_awaited());
    all.extension_ended("both");
    assert!(!all.is_end_awaited());
    all.give(invocation("late"), Bytes::new());
    assert!(all.take_invocation(Instant::now()).is_none());
}

#[test]
fn errors_of_extensions_come_when_they_can() {
    let mut all = Lifecycle::default();
    assert!(all.launched("one"));
    let id = all.register("one", BOTH).unwrap();
    all.extension_fails(&id, At::InitError).unwrap();
    assert_eq!(kind(all.extension_fails(&id, At::InitError)), "Extension.InvalidExtensionState");
    assert_eq!(kind(all.extension_asks(&id)), "Extension.InvalidExtensionState");
    let mut all = Lifecycle::default();
    let id = all.register("one", INVOKE).unwrap();
    let _ = all.extension_asks(&id);
    assert_eq!(kind(all.extension_fails(&id, At::InitError)), "Extension.InvalidExtensionState");
    all.extension_fails(&id, At::ExitError).unwrap();
    // A sandbox with an extension that failed is never free.
    assert_eq!(all.runtime_asks(), Ok(None));
}

#[test]
fn there_are_no_more_than_there_may_be() {
    let mut all = Lifecycle::default();
    for number in 0..MOST_EXTENSIONS {
        all.register(&number.to_string(), INVOKE).unwrap();
    }
    assert_eq!(kind(all.register("more", INVOKE)), "Extension.TooManyExtensions");
    assert!(!all.launched("more"));
}

/// What anybody in a container, or the service, may do.
#[derive(Clone, Debug)]
enum Does {
    Launch(u8),
    Register(u8, bool, bool),
    Ask(u8),
    Take(u8),
    Fail(u8, bool),
    Exit(u8),
    RuntimeAsks,
    RuntimeTakes,
    Finish,
    End,
}

fn does() -> impl Strategy<Value = Does> {
    let name = 0..13_u8;
    prop_oneof![
        1 => name.clone().prop_map(Does::Launch),
        1 => (name.clone(), any::<bool>(), any::<bool>()).prop_map(|(name, one, two)| Does::Register(name, one, two)),
        1 => name.clone().prop_map(Does::Ask),
        1 => name.clone().prop_map(Does::Take),
        1 => (name.clone(), any::<bool>()).prop_map(|(name, is_init)| Does::Fail(name, is_init)),
        1 => name.prop_map(Does::Exit),
        4 => Just(Does::RuntimeAsks),
        4 => Just(Does::RuntimeTakes),
        4 => Just(Does::Finish),
        1 => Just(Does::End),
    ]
}

proptest! {
    /// In whatever order things are done: the sandbox is told of as free once for each time that everybody asks, never while anybody is at
    /// an invocation, and what is held stays within its bounds.
    #[test]
    fn any_order(all in proptest::collection::vec(does(), 0..200)) {
        let mut state = Lifecycle::default();
        let (mut ids, mut counted, mut given) = (vec![String::new(); 13], 0, 0_u64);
        for one in all {
            let was_free = state.is_free();
            let told = match one {
                Does::Launch(name) => {
                    // The first process says so before the runtime is there.
                    if !state.has_runtime_asked() {
                        state.launched(&name.to_string());
                    }
                    None
                }
                Does::Register(name, invoke, shutdown) => {
                    if let Ok(id) = state.register(&name.to_string(), Wanted { invoke, shutdown }) {
                        ids[usize::from(name)] = id;
                    }
                    None
                }
                Does::Ask(name) => state.extension_asks(&ids[usize::from(name)]).unwrap_or(None),
                Does::Take(name) => {
                    let _ = state.take_event(&ids[usize::from(name)]);
                    None
                }
                Does::Fail(name, is_init) => {
                    let at = if is_init { At::InitError } else { At::ExitError };
                    let _ = state.extension_fails(&ids[usize::from(name)], at);
                    None
                }
                Does::Exit(name) => {
                    state.extension_ended(&name.to_string());
                    None
                }
                Does::RuntimeAsks => state.runtime_asks().unwrap_or(None),
                Does::RuntimeTakes => {
                    // The service gives one to who is free.
                    if state.is_free() {
                        given += 1;
                        state.give(invocation(&given.to_string()), Bytes::new());
                    }
                    let _ = state.take_invocation(Instant::now());
                    None
                }
                Does::Finish => {
                    let _ = state.finish(&given.to_string());
                    None
                }
                Does::End => {
                    state.end(Reason::Failure);
                    state.tell_of_end(Reason::Failure, 0);
                    None
                }
            };
            if let Some(number) = told {
                counted += 1;
                prop_assert_eq!(number, counted);
                prop_assert!(!was_free && state.is_free() && state.invocation().is_none());
            }
            prop_assert!(state.extensions().len() <= MOST_EXTENSIONS);
            prop_assert!(!(state.is_ending() && state.is_free()));
            prop_assert_eq!(state.asks(), counted);
        }
    }
}
