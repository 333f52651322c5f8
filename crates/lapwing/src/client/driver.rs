//! The task that looks after a connection when no caller does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lapwing_shm::{SPIN_BOUND, Spin};

use super::{Core, Kick, LINGER, lock};
use crate::link::Broken;
use crate::waking::{Bells, Woken, until, yield_to_others};

/// See the invariant of the parent module.
pub(crate) struct Driver {
    core: Arc<Core>,
    kick: Arc<Kick>,
    bells: Bells,
    /// Frames delivered by anybody when this task last looked.
    delivered: u64,
    /// In the looking mode: since when nothing came.
    quiet_since: Option<Instant>,
    /// When bulk memory is to be swept, while there is any.
    sweep_at: Option<Instant>,
    bulk_idle: Duration,
}

/// What one turn of the driver found.
enum Turn {
    /// Frames were delivered, or somebody was woken for room.
    Moved,
    Nothing,
    /// A task looks in place and holds the receiving half.
    Elsewhere,
}

/// What the driver does until it is woken.
enum Rest {
    /// Looks again after the others have run.
    Look,
    /// Sleeps, armed, until something comes.
    Sleep,
    /// Sleeps for a moment, not armed, as others look in place.
    Linger,
}

impl Driver {
    pub(crate) fn new(core: Arc<Core>, kick: Arc<Kick>, bulk_idle: Duration) -> io::Result<Driver> {
        let bells = Bells::new(&core.socket, core.doorbell.as_ref())?;
        Ok(Driver { core, kick, bells, delivered: 0, quiet_since: None, sweep_at: None, bulk_idle })
    }

    pub(crate) async fn run(mut self) {
        // Whether to look for a while before sleeping: after being woken, not after a linger.
        let mut looking = true;
        while self.core.end().is_none() {
            let rest = self.turn().and_then(|turn| self.rest(&turn, looking));
            let rested = match rest {
                Ok(Rest::Look) => {
                    self.kick.looking.store(true, Ordering::Relaxed);
                    yield_to_others().await;
                    Ok(looking)
                }
                Ok(Rest::Linger) => self.wait(Some(LINGER)).await,
                Ok(Rest::Sleep) => self.sleep().await,
                Err(broken) => Err(broken),
            };
            match rested {
                Ok(woken) => looking = woken,
                Err(broken) => self.end(&broken),
            }
        }
    }

    fn turn(&mut self) -> Result<Turn, Broken> {
        self.core.flush()?;
        let Ok(mut inbox) = self.core.inbox.try_lock() else {
            return Ok(Turn::Elsewhere);
        };
        let before = inbox.delivered;
        self.core.deliver(&mut inbox, None)?;
        let moved = inbox.delivered != before;
        drop(inbox);
        if self.core.doorbell.is_none() {
            self.core.push_backlog()?;
        }
        let woken = self.core.offer_room();
        Ok(if moved || woken { Turn::Moved } else { Turn::Nothing })
    }

    /// What to do after a turn.
    fn rest(&mut self, turn: &Turn, looking: bool) -> Result<Rest, Broken> {
        match turn {
            Turn::Elsewhere => return Ok(Rest::Linger),
            Turn::Moved => {
                self.quiet_since = None;
                return Ok(Rest::Look);
            }
            Turn::Nothing => {}
        }
        let wanted = self.core.in_flight() > 0 || self.core.room_wanted();
        let Ok(mut inbox) = self.core.inbox.try_lock() else {
            return Ok(Rest::Linger);
        };
        let warm = inbox.spinner.is_warm();
        if warm && wanted && looking {
            inbox.disarm();
            let quiet = self.quiet_since.get_or_insert_with(Instant::now).elapsed();
            if quiet < SPIN_BOUND {
                return Ok(Rest::Look);
            }
            if inbox.spinner.policy() == Spin::Always {
                // One that never sleeps looks now and then whether the server is still there.
                if quiet >= LINGER && self.core.doorbell.is_some() {
                    self.quiet_since = None;
                    self.core.look_at_socket()?;
                }
                return Ok(Rest::Look);
            }
        }
        self.quiet_since = None;
        let moved = std::mem::replace(&mut self.delivered, inbox.delivered) != inbox.delivered;
        if warm && !wanted && moved && !inbox.is_armed() {
            return Ok(Rest::Linger);
        }
        Ok(if inbox.arm()? { Rest::Sleep } else { Rest::Look })
    }

    /// Sleeps, armed. Returns whether it was woken by something to look at.
    async fn sleep(&mut self) -> Result<bool, Broken> {
        // Armed before this look: room that comes later rings.
        if self.core.offer_room() {
            return Ok(true);
        }
        let since = Instant::now();
        let waited_for = self.core.in_flight() > 0;
        let woken = self.wait(None).await?;
        if waited_for && let Ok(mut inbox) = self.core.inbox.try_lock() {
            inbox.spinner.slept(since.elapsed());
        }
        Ok(woken)
    }

    /// Waits for the doorbell, the socket or a kick, for at most `limit`; whether one of them came.
    async fn wait(&mut self, limit: Option<Duration>) -> Result<bool, Broken> {
        if self.kick.looking.swap(false, Ordering::Relaxed) {
            self.core.flush()?;
        }
        self.sweep_if_due()?;
        let sweep_at = self.sweep_at;
        let writable = lock(&self.core.outbox).sending.has_backlog();
        let over = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.kick.notify.notified() => Ok(true),
            woken = self.bells.wait(writable) => {
                if matches!(woken?, Woken::Socket { .. }) && self.core.doorbell.is_some() {
                    self.core.look_at_socket()?;
                }
                Ok(true)
            }
            () = over => Ok(false),
            // What is due is done before the next sleep.
            () = until(sweep_at) => Ok(false),
        }
    }

    /// Gives bulk memory back that was not used for a while.
    fn sweep_if_due(&mut self) -> Result<(), Broken> {
        match self.sweep_at {
            Some(at) if Instant::now() >= at => {
                self.core.sweep_bulk()?;
                self.sweep_at = None;
            }
            Some(_) => return Ok(()),
            None => {}
        }
        if self.core.has_bulk() {
            self.sweep_at = Instant::now().checked_add(self.bulk_idle);
        }
        Ok(())
    }

    fn end(&self, broken: &Broken) {
        if matches!(broken, Broken::Ended) {
            self.core.deliver_last(&mut lock(&self.core.inbox));
        } else {
            // Nothing is to be delivered, so who looks in place at this moment is not waited for.
            self.core.finish(broken);
        }
    }
}
