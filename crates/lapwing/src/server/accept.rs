//! Accepting connections and shaking hands.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use lapwing_proto::{Checksum, Features, HelloReject, WireError};
use tokio::io::Interest;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::connection::{Connection, End};
use super::handler::Caller;
use super::stats::Tally;
use super::{Phase, Place, Shared};
use crate::bulk::BulkTerms;
use crate::control::{ControlError, ControlSocket, Message};
use crate::endpoint::Listener;
use crate::handshake::{ServerHello, control_reject, refuse};
use crate::link::Link;
use crate::peer::PeerCredentials;
use crate::platform;
use crate::waking::watch;

/// How long to leave the queue alone when the system has no descriptor left for its head.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// The task that accepts. It owns the tasks of all connections: when it ends, they do.
pub(crate) struct Acceptor {
    shared: Arc<Shared>,
    listener: Listener,
    incoming: tokio::net::UnixListener,
    phase: watch::Receiver<Phase>,
    connections: JoinSet<()>,
}

impl Acceptor {
    pub(crate) fn new(
        shared: Arc<Shared>,
        listener: Listener,
        phase: watch::Receiver<Phase>,
    ) -> io::Result<Acceptor> {
        let incoming = tokio::net::UnixListener::from_std(listener.socket().try_clone()?)?;
        Ok(Acceptor { shared, listener, incoming, phase, connections: JoinSet::new() })
    }

    pub(crate) async fn run(self) {
        let Acceptor { shared, listener, incoming, mut phase, mut connections } = self;
        loop {
            tokio::select! {
                accepted = incoming.accept() => match accepted {
                    Ok((socket, _)) => {
                        let greeted = greet(Arc::clone(&shared), socket, phase.clone());
                        connections.spawn(greeted);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "could not accept a connection");
                        tokio::time::sleep(EXHAUSTED_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                _ = phase.changed() => break,
            }
        }
        // The socket file goes first: who connects now is told at once that nobody is there.
        drop((incoming, listener));
        while connections.join_next().await.is_some() {}
    }
}

/// Shakes hands with one client and serves it.
async fn greet(shared: Arc<Shared>, socket: tokio::net::UnixStream, phase: watch::Receiver<Phase>) {
    let Ok(socket) = socket.into_std() else {
        return;
    };
    let Some((caller, link, place)) = shake_hands(&shared, socket, phase.clone()).await else {
        shared.totals.add(&mut Tally { refused: 1, ..Tally::default() });
        return;
    };
    let peer = caller.credentials;
    let id = caller.connection_id;
    tracing::debug!(connection = id, %peer, "connected");
    let connection = match Connection::new(shared, caller, link, phase) {
        Ok(connection) => connection,
        Err(error) => return tracing::warn!(%error, connection = id, "could not be watched"),
    };
    match connection.run().await {
        End::Misbehaved(fault) => tracing::warn!(connection = id, %peer, %fault, "cut"),
        end => tracing::debug!(connection = id, ?end, "ended"),
    }
    drop(place);
}

async fn shake_hands(
    shared: &Arc<Shared>,
    socket: UnixStream,
    phase: watch::Receiver<Phase>,
) -> Option<(Caller, Link, Place)> {
    let credentials = platform::peer_credentials(&socket).ok()?;
    let mut control = ControlSocket::new(socket).ok()?;
    let place = match shared.take_place(&credentials) {
        Ok(place) => place,
        Err(sentence) => {
            refuse(&control, &HelloReject::new(WireError::QuotaConnections, &sentence));
            return None;
        }
    };
    let received = first_frame(shared, &mut control, phase).await;
    let granted = match received {
        Ok(message) => grant(shared, &control, message, &credentials, &place),
        Err(reject) => Err(reject),
    };
    match granted {
        Ok((caller, link)) => Some((caller, link, place)),
        Err(Some(reject)) => {
            refuse(&control, &reject);
            tracing::warn!(peer = %credentials, reason = reject.sentence, "refused");
            None
        }
        Err(None) => None,
    }
}

/// Waits for Hello within the handshake's time. `Err(None)`: there is nobody to answer.
async fn first_frame(
    shared: &Shared,
    control: &mut ControlSocket,
    mut phase: watch::Receiver<Phase>,
) -> Result<Message, Option<HelloReject>> {
    tokio::select! {
        received = receive(control) => received.map_err(|error| control_reject(&error)),
        () = tokio::time::sleep(shared.limits.handshake) => {
            Err(Some(HelloReject::new(WireError::HandshakeTimeout, "")))
        }
        _ = phase.changed() => Err(Some(HelloReject::new(WireError::Draining, ""))),
    }
}

async fn receive(control: &mut ControlSocket) -> Result<Message, ControlError> {
    let watched = watch(control.socket(), Interest::READABLE).map_err(ControlError::Io)?;
    loop {
        let mut ready = watched.readable().await.map_err(ControlError::Io)?;
        match control.try_receive()? {
            Some(message) => return Ok(message),
            None => ready.clear_ready(),
        }
    }
}

fn grant(
    shared: &Shared,
    control: &ControlSocket,
    message: Message,
    credentials: &PeerCredentials,
    place: &Place,
) -> Result<(Caller, Link), Option<HelloReject>> {
    let hello = ServerHello::receive(message).map_err(Some)?;
    let admitted = shared.policy.admit(credentials);
    let not_permitted = |sentence: String| HelloReject::new(WireError::NotPermitted, &sentence);
    admitted.map_err(|sentence| Some(not_permitted(sentence)))?;
    let connection_id = shared.next_connection_id();
    let mut offer = shared.offer.clone();
    if credentials.uid != platform::own_uid() {
        // Frames without a checksum are for processes of one user only.
        offer.checksums.remove(Checksum::Off);
    }
    if !platform::shares_clock(credentials.pid) {
        offer.features = offer.features.without(Features::CLOCK);
    }
    let terms = BulkTerms {
        own_bytes_max: shared.limits.bulk_bytes,
        in_place: shared.in_place,
        account: Some(Arc::clone(&place.bulk)),
    };
    let link = hello.admit().grant(control, &offer, connection_id, &terms).map_err(Some)?;
    let program = link.agreed.peer_program.clone();
    Ok((Caller { connection_id, credentials: *credentials, program }, link))
}
