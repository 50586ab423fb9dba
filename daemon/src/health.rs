//! Whether the process is well, in three kinds: live, that it does its work at all; ready, that it
//! takes work; and deep, that its store answers. Whoever asks is told what is known already: nothing
//! here waits for the load that it judges. How one asks is in `http`.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use cairn_castore::errors::message;
use cairn_store::Services;
use cairn_telemetry::{
    inventory::{self, Service},
    operations::{self, HANGS},
};
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::{probe, services::name};

/// How often the runtime shows that it goes on.
const BEAT: Duration = Duration::from_secs(1);

/// A runtime that has not shown it for so long is stuck.
const BEAT_MAX: Duration = Duration::from_secs(15);

/// How often the store is tried.
const TRY_INTERVAL: Duration = Duration::from_secs(20);

/// How long a service of the store may take to answer when it is tried: longer than a peer that was
/// there has to come back, so that it is said what is wrong.
const TRY_TIME: Duration = Duration::from_secs(15);

/// What was found when the store was tried counts for so long.
const TRIED_MAX: Duration = Duration::from_secs(90);

/// How far the process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Starting,
    Ready,
    Ending,
}

/// What is known of the health of this process.
#[derive(Debug)]
pub(crate) struct Health(Mutex<State>);

#[derive(Debug)]
struct State {
    stage: Stage,
    /// When the runtime last showed that it goes on.
    beat: Instant,
    /// When each service was last tried, and what is wrong with it.
    tried: [Option<(Instant, Option<String>)>; Service::ALL.len()],
}

/// What is wrong, each in a line; nothing if all is well.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ills(Vec<String>);

impl Ills {
    pub(crate) fn is_well(&self) -> bool {
        self.0.is_empty()
    }

    /// Each by itself.
    pub(crate) fn into_lines(self) -> Vec<String> {
        self.0
    }

    fn with(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }
}

impl fmt::Display for Ills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_well() {
            return f.write_str("ok\n");
        }
        self.0.iter().try_for_each(|ill| writeln!(f, "{ill}"))
    }
}

impl Health {
    pub(crate) fn new() -> Self {
        let tried = [const { None }; Service::ALL.len()];
        Self(Mutex::new(State { stage: Stage::Starting, beat: Instant::now(), tried }))
    }

    /// From now on the process takes work.
    pub(crate) fn ready(&self) {
        self.0.lock().stage = Stage::Ready;
    }

    /// From now on it takes no more.
    pub(crate) fn ending(&self) {
        self.0.lock().stage = Stage::Ending;
    }

    /// Whether the process does its work.
    pub(crate) fn live(&self) -> Ills {
        let mut ills = Ills::default();
        let silent = self.0.lock().beat.elapsed();
        if silent > BEAT_MAX {
            ills.0.push(format!("the runtime has been stuck for {} s", silent.as_secs()));
        }
        if operations::FUSE.is_stuck(HANGS) {
            let seconds = HANGS.as_secs();
            ills.0.push(format!("every thread that serves has been stuck for {seconds} s"));
        }
        ills
    }

    /// Whether it takes work.
    pub(crate) fn readiness(&self) -> Ills {
        Ills(match self.0.lock().stage {
            Stage::Starting => vec!["starting: not all is open yet".to_owned()],
            Stage::Ready => Vec::new(),
            Stage::Ending => vec!["ending: no more work is taken".to_owned()],
        })
    }

    /// Both.
    pub(crate) fn shallow(&self) -> Ills {
        self.live().with(self.readiness())
    }

    /// Both, and whether the store answered.
    pub(crate) fn deep(&self) -> Ills {
        self.shallow().with(self.store())
    }

    /// Whether the store answered when it was last tried.
    pub(crate) fn store(&self) -> Ills {
        let mut ills = Ills::default();
        let state = self.0.lock();
        for (service, tried) in Service::ALL.iter().zip(&state.tried) {
            let name = name(*service);
            match tried {
                None => ills.0.push(format!("{name}: not tried yet")),
                Some((when, _)) if when.elapsed() > TRIED_MAX => {
                    ills.0.push(format!("{name}: not tried for {} s", when.elapsed().as_secs()));
                }
                Some((_, Some(ill))) => ills.0.push(format!("{name}: {ill}")),
                Some((_, None)) => {}
            }
        }
        ills
    }

    fn note(&self, service: Service, taken: Duration, ill: Option<String>) {
        let index = service as usize;
        inventory::STORE_ANSWERS.set_at(index, if ill.is_none() { 1.0 } else { 0.0 });
        inventory::STORE_ANSWER_TIME.set_at(index, taken.as_secs_f64());
        self.0.lock().tried[index] = Some((Instant::now(), ill));
    }
}

/// Shows that the runtime goes on, as long as it does, until what is returned is dropped.
pub(crate) fn beat(health: Arc<Health>) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut beats = interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beats.tick().await;
            health.0.lock().beat = Instant::now();
        }
    }))
}

/// Tries the store now and then, until what is returned is dropped.
pub(crate) fn try_store(health: Arc<Health>, services: Services) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut times = interval(TRY_INTERVAL);
        times.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            times.tick().await;
            join_all(Service::ALL.iter().map(|service| try_one(&health, &services, *service)))
                .await;
        }
    }))
}

async fn try_one(health: &Health, services: &Services, service: Service) {
    let start = Instant::now();
    let ill = match timeout(TRY_TIME, probe::ask(services, service)).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(message(error.as_ref()).replace('\n', " ")),
        Err(_) => Some(format!("no answer within {} s", TRY_TIME.as_secs())),
    };
    if let Some(ill) = &ill {
        tracing::warn!(service = name(service), ill, "the store does not answer");
    }
    health.note(service, start.elapsed(), ill);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_between_its_start_and_its_end() {
        let health = Health::new();
        assert_eq!(health.readiness().to_string(), "starting: not all is open yet\n");
        assert!(health.live().is_well());
        health.ready();
        assert_eq!(health.shallow().to_string(), "ok\n");
        health.ending();
        assert_eq!(health.readiness().to_string(), "ending: no more work is taken\n");
        assert!(health.live().is_well());
    }

    #[test]
    fn a_runtime_that_is_stuck_is_told() {
        let health = Health::new();
        let long_ago = Instant::now().checked_sub(BEAT_MAX + BEAT).expect("the clock goes back");
        health.0.lock().beat = long_ago;
        assert!(health.live().to_string().starts_with("the runtime has been stuck for "));
    }

    #[test]
    fn what_is_wrong_with_the_store_is_deep() {
        let health = Health::new();
        health.ready();
        assert!(health.deep().to_string().contains("path infos: not tried yet\n"));
        for service in Service::ALL {
            health.note(*service, Duration::ZERO, None);
        }
        assert!(health.deep().is_well());
        let gone = std::io::Error::other("gone");
        health.note(Service::Directories, Duration::ZERO, Some(message(&gone)));
        assert_eq!(health.deep().to_string(), "directories: gone\n");
        assert!(health.shallow().is_well());
        let long_ago = Instant::now().checked_sub(2 * TRIED_MAX).expect("the clock goes back");
        health.0.lock().tried[1] = Some((long_ago, None));
        assert!(health.deep().to_string().starts_with("directories: not tried for "));
    }
}
