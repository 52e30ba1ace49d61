//! The users: a load generator with a bounded rate that ends by itself.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::http;

/// Asks for `/` so many times a second, until this time is over or nobody has been there for a while.
pub async fn run(users: SocketAddr, per_second: u32, time: Duration) {
    let queue = Arc::new(Semaphore::new(MOST_WAITING));
    let lost = Arc::new(AtomicU32::new(0));
    let mut tick = interval(Duration::from_secs(1) / per_second.max(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let end = Instant::now() + time;
    while Instant::now() < end && lost.load(Ordering::Relaxed) < MOST_LOST {
        tick.tick().await;
        // A user who finds the queue too long goes away.
        let Ok(place) = Arc::clone(&queue).try_acquire_owned() else { continue };
        let lost = Arc::clone(&lost);
        tokio::spawn(async move {
            match http::get(users, "/").await {
                Ok(_) => lost.store(0, Ordering::Relaxed),
                Err(_) => drop(lost.fetch_add(1, Ordering::Relaxed)),
            }
            drop(place);
        });
    }
}

const MOST_WAITING: usize = 64;
const MOST_LOST: u32 = 20;
