//! Threads, waiting and time, such that a test can have them in its hands; and work that nobody waits for.
//!
//! Code that takes its threads, its [`Condvar`]s and its time from a [`Threads`] runs as it is on the machine's own, and by a seed in a
//! simulation: there one thread runs at a time, until it waits, and time passes only when all wait. Mutexes need nothing: a thread
//! must hold none while it waits, so that nobody ever waits for one.

mod background;
#[cfg(any(test, feature = "simulation"))]
mod simulation;

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

pub use background::{Background, Taken};
#[cfg(any(test, feature = "simulation"))]
pub use simulation::{Event, Simulation};

/// Where code runs.
#[derive(Clone, Debug, Default)]
pub enum Threads {
    /// On the machine's threads, by its clock.
    #[default]
    Real,
    /// In a test.
    #[cfg(any(test, feature = "simulation"))]
    Simulated(Simulation),
}

/// A thread that can be waited for.
#[derive(Debug)]
pub enum Thread {
    #[doc(hidden)]
    Real(JoinHandle<()>),
    #[doc(hidden)]
    #[cfg(any(test, feature = "simulation"))]
    Simulated(simulation::Joining),
}

impl Threads {
    /// The time.
    pub fn now(&self) -> Instant {
        match self {
            Self::Real => Instant::now(),
            #[cfg(any(test, feature = "simulation"))]
            Self::Simulated(simulation) => simulation.now(),
        }
    }

    /// Starts a thread. Dropping the handle lets it go on.
    ///
    /// # Errors
    /// Those of the system.
    pub fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<Thread> {
        match self {
            Self::Real => std::thread::Builder::new().name(name.into()).spawn(work).map(Thread::Real),
            #[cfg(any(test, feature = "simulation"))]
            Self::Simulated(simulation) => simulation.spawn(name, work).map(Thread::Simulated),
        }
    }

    /// Something to wait for.
    pub fn condvar(&self) -> Condvar {
        Condvar(match self {
            Self::Real => Kind::Real(std::sync::Condvar::new()),
            #[cfg(any(test, feature = "simulation"))]
            Self::Simulated(simulation) => Kind::Simulated(simulation.event()),
        })
    }
}

impl Thread {
    /// Waits for its end. What it panicked with, it has said.
    pub fn join(self) {
        match self {
            Self::Real(thread) => drop(thread.join()),
            #[cfg(any(test, feature = "simulation"))]
            Self::Simulated(thread) => thread.join(),
        }
    }
}

/// As the standard library's.
#[derive(Debug)]
pub struct Condvar(Kind);

#[derive(Debug)]
enum Kind {
    Real(std::sync::Condvar),
    #[cfg(any(test, feature = "simulation"))]
    Simulated(Event),
}

impl Condvar {
    /// Lets go of `guard`, which is of `mutex`, until somebody notifies this.
    pub fn wait<'a, T>(&self, mutex: &'a Mutex<T>, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        match &self.0 {
            Kind::Real(condvar) => {
                // A simulation needs it, to lock it again.
                let _ = mutex;
                condvar.wait(guard).unwrap_or_else(PoisonError::into_inner)
            }
            #[cfg(any(test, feature = "simulation"))]
            Kind::Simulated(event) => {
                drop(guard);
                event.wait(None);
                mutex.lock().unwrap_or_else(PoisonError::into_inner)
            }
        }
    }

    /// Wakes one that waits.
    pub fn notify_one(&self) {
        match &self.0 {
            Kind::Real(condvar) => condvar.notify_one(),
            #[cfg(any(test, feature = "simulation"))]
            Kind::Simulated(event) => event.notify(1),
        }
    }

    /// Wakes all that wait.
    pub fn notify_all(&self) {
        match &self.0 {
            Kind::Real(condvar) => condvar.notify_all(),
            #[cfg(any(test, feature = "simulation"))]
            Kind::Simulated(event) => event.notify(usize::MAX),
        }
    }
}
