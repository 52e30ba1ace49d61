//! No value of a config var, no token and no signature is anywhere that a rollout leaves traces.

use std::{
    fmt::{self, Write as _},
    sync::{Arc, Mutex},
    time::Duration,
};

use rollback_core::{
    engine::{Engine, NewRollout, Target},
    gate::Policy,
    listener::{Listener, RolloutEvent},
    model::{RolloutId, Weight},
    plan::Plan,
    report::Report,
    state::State,
    store::{Memory, Store as _},
    testing::{backend::Bench as _, gates::Scripted},
};
use rollback_heroku::{
    gate::{Dynos, Logs, Router},
    testing::{Heroku, Traffic},
};
use sha2::{Digest as _, Sha256};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::support::{Make, Shop, VALUE, a_slug, a_source};

/// Keeps every field of every span and event, of every level.
#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<String>>);

impl Visit for Kept {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = writeln!(self.0.lock().unwrap(), "{field}={value:?}");
    }
}

impl Subscriber for Kept {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        span.record(&mut self.clone());
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, values: &span::Record<'_>) {
        values.record(&mut self.clone());
    }
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

impl Listener for Kept {
    fn on(&self, event: &RolloutEvent) {
        let _ = writeln!(self.0.lock().unwrap(), "{event:?} {}", event.rollout);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_secret_is_in_the_record_the_events_the_report_or_the_log() {
    for (make, code_only, troubled) in
        [(a_slug as Make, false, false), (a_slug, true, false), (a_source, false, false), (a_slug, false, true)]
    {
        let shop = Shop::new(make);
        let shop = if code_only { shop.app(|app| app.code_only()) } else { shop };
        shop.reset().await;
        shop.heroku.set_config("shop", "API_KEY", VALUE);
        if troubled {
            // Refused: the old release has other values than today's.
            shop.heroku.set_config_quietly("shop", "DATABASE_URL", "postgres://u:hunter2@new.example/d");
        }
        shop.heroku.traffic("shop", Traffic { ok: 100.0, latency: [1.0; 3], ..Traffic::default() });
        let (log, events) = (Kept::default(), Kept::default());
        let heard = tracing::subscriber::set_default(log.clone());
        let store = Memory::new();
        let engine =
            Engine::builder(store.clone()).clock(shop.heroku.clock()).listener(events.clone()).build().unwrap();
        let app = shop.backend();
        let target = Target::new("shop", app.clone())
            .unwrap()
            .gate(Dynos::new(&app), Policy::default())
            .gate(Router::new(&app, 0.5).unwrap(), Policy::default())
            .gate(Logs::new(&app, 0.5).unwrap(), Policy::default())
            .gate(Scripted::unhealthy_from("errors", Weight::ALL), Policy::default());
        engine.register(target).unwrap();
        let id = RolloutId::try_from("shop-1").unwrap();
        let plan = Plan::all_at_once(Duration::from_secs(120)).unwrap();
        let new = NewRollout::new("shop", shop.candidate(), plan).unwrap().id(id.clone()).by("ana").unwrap();
        let outcome = engine.start(new).await.unwrap().finished().await;
        // The listener's thread lives in real time; paused time would run past this deadline before it has told all.
        tokio::time::resume();
        engine.shutdown(Duration::from_secs(60)).await;
        tokio::time::pause();
        drop(heard);
        let rollout = &outcome.rollout;
        match troubled {
            true => assert!(matches!(rollout.state, State::Refused { .. }), "{rollout}"),
            false => assert!(matches!(rollout.state, State::RolledBack { .. }), "{rollout}"),
        }
        let (record, _) = store.load(&id).await.unwrap();
        let (log, events) = (log.0.lock().unwrap().clone(), events.0.lock().unwrap().clone());
        let report = Report::new(rollout);
        // They are what they are taken for.
        assert!(record.body.contains("DATABASE_URL") && record.body.contains("API_KEY"), "the keys are kept");
        assert!(events.contains("shop-1") && log.contains("shop"), "{events} {log}");
        assert!(report.markdown().contains("shop"));

        let digest = |value: &str| {
            Sha256::digest(value).iter().fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            })
        };
        let value = shop.heroku.config("shop", "DATABASE_URL").unwrap();
        let told = format!("{outcome} {outcome:?} {rollout:?} {:?} {engine:?} {app:?}", record);
        for (what, text) in [
            ("the record", &*record.body),
            ("the events", &events),
            ("the log", &log),
            ("the report", &report.markdown()),
            ("the page", &report.html()),
            ("what is printed", &told),
        ] {
            for secret in [VALUE, &value, &digest(VALUE), &digest(&value), Heroku::TOKEN] {
                assert!(!text.contains(secret), "{what} has {secret}: {text}");
            }
            // The address of a source is signed. The record alone needs it, sealed.
            assert!(what == "the record" || !text.contains("s3cr3t"), "{what} has a signature: {text}");
        }
    }
}
