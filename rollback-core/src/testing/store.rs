//! What every [`Store`] promises, one function a promise.
//!
//! A store's author calls [`all`], and where it applies [`retention`], [`reopening_finds_everything`] and
//! [`two_handles_share_one_truth`]. A broken promise is a panic that says which. Every function makes fresh ids, so it
//! may run again and again on one store, beside others, and on a store that holds real records.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use rollback_core::{store::Memory, testing};
//!
//! testing::store::all(&Memory::new()).await;
//! # }
//! ```

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
};

use crate::{
    error::{Error, ErrorKind, Result},
    model::{DriverId, RolloutId, Serial, TargetId},
    request::{Ask, Request},
    store::{Asked, Claim, Record, Standing, Store},
};

/// Runs every promise that needs nothing but the store.
pub async fn all(store: &dyn Store) {
    what_was_created_can_be_loaded(store).await;
    the_same_record_twice_is_harmless(store).await;
    an_id_taken_by_another_record_is_a_conflict(store).await;
    a_busy_subject_is_a_conflict_that_names_the_open_rollout(store).await;
    a_closed_subject_can_be_opened_again(store).await;
    a_finished_record_is_not_opened_again_on_a_busy_subject(store).await;
    an_update_replaces_the_record_and_raises_the_serial_by_one(store).await;
    a_stale_serial_is_a_conflict_and_changes_nothing(store).await;
    the_subject_of_a_record_never_changes(store).await;
    one_of_many_updates_wins(store).await;
    one_of_many_creates_of_a_subject_wins(store).await;
    an_unknown_id_is_not_found(store).await;
    open_lists_exactly_what_is_open(store).await;
    a_beat_changes_every_time_and_belongs_to_its_driver(store).await;
    a_driver_that_never_beat_has_no_beat(store).await;
    requests_reach_the_driver_in_order(store).await;
    requests_come_again_until_they_are_heard(store).await;
    requests_follow_a_rollout_to_its_new_driver(store).await;
    requests_are_numbered_after_what_was_heard(store).await;
    many_requests_at_once_get_a_number_each(store).await;
    nobody_asks_a_rollout_that_is_over(store).await;
    history_is_newest_first_and_limited(store).await;
    any_text_comes_back_as_it_was(store).await;
    a_large_body_comes_back_as_it_was(store).await;
    every_envelope_comes_back_as_it_was(store).await;
}

/// `create`, then `load`: the same record, at the serial that `create` returned.
pub async fn what_was_created_can_be_loaded(store: &dyn Store) {
    let record = record(&subject());
    let serial = ok(store.create(&record).await, "create");
    holds(store, &record, serial, "after create").await;
}

/// A `create` whose answer was lost may be repeated.
pub async fn the_same_record_twice_is_harmless(store: &dyn Store) {
    let record = record(&subject());
    let first = ok(store.create(&record).await, "create");
    let second = ok(store.create(&record).await, "create of the same record");
    assert_eq!(first, second, "create of the same record returned another serial");
    holds(store, &record, first, "after creating it twice").await;
    let history = ok(store.history(&record.subject, 10).await, "history");
    assert_eq!(history.len(), 1, "create of the same record added a second one");
}

/// `create` with an id that another record has, of this subject or of another, open or over.
pub async fn an_id_taken_by_another_record_is_a_conflict(store: &dyn Store) {
    let record = record(&subject());
    let serial = ok(store.create(&record).await, "create");
    let elsewhere = Record { subject: subject(), ..record.clone() };
    conflict(store.create(&elsewhere).await, "create with the id of an open record");
    let different = Record { body: body("different"), ..record.clone() };
    conflict(store.create(&different).await, "create with the id of an open record of the same subject");
    holds(store, &record, serial, "after a refused create").await;

    let closed = Record { standing: Standing::Over, ..record.clone() };
    let serial = ok(store.update(&closed, serial).await, "closing");
    conflict(store.create(&record).await, "create with the id of a finished record");
    holds(store, &closed, serial, "after a refused create").await;
}

/// `create` for a subject that has an open rollout: `Conflict`, which says which, and leaves nothing behind.
pub async fn a_busy_subject_is_a_conflict_that_names_the_open_rollout(store: &dyn Store) {
    let subject = subject();
    let (first, second) = (record(&subject), record(&subject));
    let serial = ok(store.create(&first).await, "create");
    let error = conflict(store.create(&second).await, "create for a busy subject");
    let said = error.chain();
    assert!(said.contains(first.id.as_str()), "the conflict of a busy subject must name {}: {said}", first.id);
    not_found(store.load(&second.id).await, "load of the record that was refused");
    holds(store, &first, serial, "after a refused create").await;
    assert_eq!(ok(store.history(&subject, 10).await, "history").len(), 1, "a refused create is in the history");
    assert_eq!(claims(store, &subject).await.len(), 1, "a refused create is listed as open");
}

/// Once its rollout is over, however it ended, a subject takes the next one.
pub async fn a_closed_subject_can_be_opened_again(store: &dyn Store) {
    let subject = subject();
    for standing in [Standing::Over, Standing::Promoted] {
        let record = record(&subject);
        let serial = ok(store.create(&record).await, "create for a closed subject");
        let closed = Record { standing, ..record };
        let serial = ok(store.update(&closed, serial).await, "closing");
        holds(store, &closed, serial, "after closing").await;
        assert!(claims(store, &subject).await.is_empty(), "a closed rollout is still listed as open");
    }
    ok(store.create(&record(&subject)).await, "create for a closed subject");
}

/// At most one open rollout a subject, whichever way a record becomes open.
pub async fn a_finished_record_is_not_opened_again_on_a_busy_subject(store: &dyn Store) {
    let subject = subject();
    let old = Record { standing: Standing::Over, ..record(&subject) };
    let serial = ok(store.create(&old).await, "create of a finished record");
    let open = record(&subject);
    ok(store.create(&open).await, "create");
    let again = Record { standing: Standing::Open, ..old.clone() };
    let error = conflict(store.update(&again, serial).await, "opening a finished record of a busy subject");
    let said = error.chain();
    assert!(said.contains(open.id.as_str()), "the conflict of a busy subject must name {}: {said}", open.id);
    holds(store, &old, serial, "after a refused update").await;
}

/// `update` with the current serial: everything but id and subject is replaced, and the serial is the next one.
pub async fn an_update_replaces_the_record_and_raises_the_serial_by_one(store: &dyn Store) {
    let mut record = record(&subject());
    let mut serial = ok(store.create(&record).await, "create");
    for round in 0..3_u32 {
        record.body = body(&format!("round {round}"));
        record.driver = (round != 1).then(DriverId::fresh);
        record.format = round;
        record.heard = round.into();
        let next = ok(store.update(&record, serial).await, "update");
        assert_eq!(next, serial.next(), "update must raise the serial by one");
        serial = next;
        holds(store, &record, serial, "after update").await;
    }
}

/// `update` with a serial the record no longer has, or not yet.
pub async fn a_stale_serial_is_a_conflict_and_changes_nothing(store: &dyn Store) {
    let first = record(&subject());
    let stale = ok(store.create(&first).await, "create");
    let second = Record { body: body("second"), ..first.clone() };
    let serial = ok(store.update(&second, stale).await, "update");
    let late = Record { body: body("late"), driver: Some(DriverId::fresh()), standing: Standing::Over, ..first };
    for expected in [stale, serial.next(), Serial(0), Serial(u64::MAX)] {
        conflict(store.update(&late, expected).await, "update with a stale serial");
        holds(store, &second, serial, "after a stale update").await;
    }
    assert_eq!(claims(store, &second.subject).await.len(), 1, "a stale update closed the rollout");
}

/// `update` with another subject is refused: a subject's history and its lock hang on it.
pub async fn the_subject_of_a_record_never_changes(store: &dyn Store) {
    let record = record(&subject());
    let serial = ok(store.create(&record).await, "create");
    let moved = Record { subject: subject(), ..record.clone() };
    let error = store.update(&moved, serial).await.expect_err("update to another subject must be refused");
    assert_eq!(error.kind(), ErrorKind::Invalid, "update to another subject: {}", error.chain());
    holds(store, &record, serial, "after a refused update").await;
}

/// Of many concurrent `update`s with one serial exactly one is saved.
pub async fn one_of_many_updates_wins(store: &dyn Store) {
    let first = record(&subject());
    let serial = ok(store.create(&first).await, "create");
    let rivals: Vec<Record> = (0..MANY).map(|n| Record { body: body(&n.to_string()), ..first.clone() }).collect();
    let outcomes = together(rivals.iter().map(|rival| store.update(rival, serial))).await;
    let winner = only_winner(&outcomes, "update");
    holds(store, &rivals[winner], serial.next(), "after many updates").await;
}

/// Of many concurrent `create`s for one subject exactly one is saved.
pub async fn one_of_many_creates_of_a_subject_wins(store: &dyn Store) {
    let subject = subject();
    let rivals: Vec<Record> = (0..MANY).map(|_| record(&subject)).collect();
    let outcomes = together(rivals.iter().map(|rival| store.create(rival))).await;
    let winner = only_winner(&outcomes, "create");
    let history = ok(store.history(&subject, MANY).await, "history");
    assert_eq!(history, [rivals[winner].clone()], "only the create that won may leave a record");
}

/// `load`, `update` and `ask` of an id that was never created; its history is empty.
pub async fn an_unknown_id_is_not_found(store: &dyn Store) {
    let record = record(&subject());
    not_found(store.load(&record.id).await, "load of an unknown id");
    not_found(store.update(&record, Serial(1)).await, "update of an unknown id");
    not_found(store.ask(&record.id, &request(Ask::Abort)).await, "ask of an unknown id");
    not_found(store.load(&record.id).await, "load after an update of an unknown id");
    let history = ok(store.history(&record.subject, 10).await, "history of an unknown subject");
    assert!(history.is_empty(), "an unknown subject has a history");
}

/// `open` lists each open rollout once, with its driver, and no other.
pub async fn open_lists_exactly_what_is_open(store: &dyn Store) {
    let driven = Record { driver: Some(DriverId::fresh()), ..record(&subject()) };
    let released = Record { driver: None, ..record(&subject()) };
    let finished = record(&subject());
    for record in [&driven, &released, &finished] {
        ok(store.create(record).await, "create");
    }
    let closed = Record { standing: Standing::Promoted, ..finished.clone() };
    ok(store.update(&closed, Serial(1)).await, "closing");
    for record in [&driven, &released] {
        let claim =
            Claim { id: record.id.clone(), subject: record.subject.clone(), driver: record.driver.clone(), beat: None };
        assert_eq!(claims(store, &record.subject).await, [claim], "open must list every open rollout once");
    }
    assert!(claims(store, &finished.subject).await.is_empty(), "open lists a rollout that is over");

    let claimed = Record { driver: Some(DriverId::fresh()), ..released };
    ok(store.update(&claimed, Serial(1)).await, "claiming");
    let seen = claims(store, &claimed.subject).await;
    assert_eq!(seen[0].driver, claimed.driver, "open must show the driver that claimed the rollout");
}

/// Each `beat` of a driver shows in `open` as another number, and only on what that driver drives.
pub async fn a_beat_changes_every_time_and_belongs_to_its_driver(store: &dyn Store) {
    let (ours, theirs) = (DriverId::fresh(), DriverId::fresh());
    let our_record = Record { driver: Some(ours.clone()), ..record(&subject()) };
    let their_record = Record { driver: Some(theirs.clone()), ..record(&subject()) };
    ok(store.create(&our_record).await, "create");
    ok(store.create(&their_record).await, "create");
    ok(store.beat(&theirs).await, "beat");
    let still = beat(store, &their_record).await;
    assert!(still.is_some(), "a driver that beat has no beat");
    let mut last = None;
    for _ in 0..3 {
        ok(store.beat(&ours).await, "beat");
        let now = beat(store, &our_record).await;
        assert!(now.is_some() && now != last, "the beat must change every time: {last:?}, then {now:?}");
        last = now;
    }
    assert_eq!(beat(store, &our_record).await, last, "the beat changed without a beat");
    assert_eq!(beat(store, &their_record).await, still, "one driver's beat changed another's");
}

/// A driver shows no beat before its first one, and a released rollout has none.
pub async fn a_driver_that_never_beat_has_no_beat(store: &dyn Store) {
    let driver = DriverId::fresh();
    let driven = Record { driver: Some(driver.clone()), ..record(&subject()) };
    let serial = ok(store.create(&driven).await, "create");
    assert_eq!(beat(store, &driven).await, None, "a driver that never beat has a beat");
    ok(store.beat(&driver).await, "beat");
    assert!(beat(store, &driven).await.is_some(), "a driver that beat has no beat");
    let released = Record { driver: None, ..driven };
    ok(store.update(&released, serial).await, "releasing");
    assert_eq!(beat(store, &released).await, None, "a released rollout has a beat");
}

/// What is asked comes with the driver's beat: in order, numbered from 1, and to nobody else.
pub async fn requests_reach_the_driver_in_order(store: &dyn Store) {
    let (ours, theirs) = (DriverId::fresh(), DriverId::fresh());
    let driven = Record { driver: Some(ours.clone()), ..record(&subject()) };
    let other = Record { driver: Some(theirs.clone()), ..record(&subject()) };
    ok(store.create(&driven).await, "create");
    ok(store.create(&other).await, "create");
    assert_eq!(ok(store.beat(&ours).await, "beat"), [], "nothing was asked yet");
    let gate = "errors".try_into().expect("a name");
    let wanted = [Ask::Pause, Ask::Resume, Ask::Approve, Ask::SkipGate(gate), Ask::PromoteNow, Ask::GiveUp, Ask::Abort];
    let mut expected = Vec::new();
    for (number, ask) in (1..).zip(wanted) {
        let request = request(ask);
        ok(store.ask(&driven.id, &request).await, "ask");
        expected.push((driven.id.clone(), Asked { number, request }));
    }
    assert_eq!(ok(store.beat(&theirs).await, "beat"), [], "another driver heard what was asked of ours");
    assert_eq!(ok(store.beat(&ours).await, "beat"), expected, "what was asked must come in order, numbered from 1");
}

/// Requests are repeated with every beat until the record has heard them; then they are forgotten, and numbers go on.
pub async fn requests_come_again_until_they_are_heard(store: &dyn Store) {
    let driver = DriverId::fresh();
    let mut driven = Record { driver: Some(driver.clone()), ..record(&subject()) };
    let mut serial = ok(store.create(&driven).await, "create");
    for ask in [Ask::Pause, Ask::Resume] {
        ok(store.ask(&driven.id, &request(ask)).await, "ask");
    }
    assert_eq!(numbers(store, &driver).await, [1, 2], "both requests must come");
    assert_eq!(numbers(store, &driver).await, [1, 2], "requests must come again until they are heard");

    driven.body = body("saved, without having heard");
    serial = ok(store.update(&driven, serial).await, "update");
    assert_eq!(numbers(store, &driver).await, [1, 2], "an update that heard nothing must forget nothing");

    driven.heard = 1;
    serial = ok(store.update(&driven, serial).await, "update");
    assert_eq!(numbers(store, &driver).await, [2], "what was heard must not come again, and the rest must");

    ok(store.ask(&driven.id, &request(Ask::Abort)).await, "ask");
    driven.heard = 2;
    serial = ok(store.update(&driven, serial).await, "update");
    assert_eq!(numbers(store, &driver).await, [3], "what was asked after the last beat must not be lost");

    driven.heard = 3;
    serial = ok(store.update(&driven, serial).await, "update");
    assert_eq!(numbers(store, &driver).await, [0; 0], "all was heard");
    ok(store.ask(&driven.id, &request(Ask::Abort)).await, "ask");
    assert_eq!(numbers(store, &driver).await, [4], "numbers must go on rising when all was heard");

    driven.standing = Standing::Over;
    ok(store.update(&driven, serial).await, "closing");
    assert_eq!(numbers(store, &driver).await, [0; 0], "a rollout that is over hears nothing");
}

/// Unheard requests belong to the rollout: whoever claims it hears them, and its old driver no longer does.
pub async fn requests_follow_a_rollout_to_its_new_driver(store: &dyn Store) {
    let (old, new) = (DriverId::fresh(), DriverId::fresh());
    let driven = Record { driver: Some(old.clone()), ..record(&subject()) };
    let serial = ok(store.create(&driven).await, "create");
    ok(store.ask(&driven.id, &request(Ask::Abort)).await, "ask");
    let released = Record { driver: None, ..driven };
    let serial = ok(store.update(&released, serial).await, "releasing");
    assert_eq!(numbers(store, &old).await, [0; 0], "a driver hears what is asked of a rollout that it released");
    ok(store.ask(&released.id, &request(Ask::Pause)).await, "ask of a rollout that nobody drives");
    let claimed = Record { driver: Some(new.clone()), ..released };
    ok(store.update(&claimed, serial).await, "claiming");
    assert_eq!(numbers(store, &new).await, [1, 2], "the new driver must hear what the old one had not");
    assert_eq!(numbers(store, &old).await, [0; 0], "the old driver still hears");
}

/// A record that came from elsewhere may have heard more than was asked here. What is asked of it now is still heard.
pub async fn requests_are_numbered_after_what_was_heard(store: &dyn Store) {
    let driver = DriverId::fresh();
    let driven = Record { driver: Some(driver.clone()), heard: 3, ..record(&subject()) };
    let serial = ok(store.create(&driven).await, "create");
    ok(store.ask(&driven.id, &request(Ask::Abort)).await, "ask");
    assert_eq!(numbers(store, &driver).await, [4], "a request must be numbered after what its record has heard");
    ok(store.update(&Record { heard: 7, ..driven.clone() }, serial).await, "update");
    ok(store.ask(&driven.id, &request(Ask::Abort)).await, "ask");
    assert_eq!(numbers(store, &driver).await, [8], "a request must be numbered after what its record has heard");
}

/// Concurrent requests are all kept, under numbers of their own.
pub async fn many_requests_at_once_get_a_number_each(store: &dyn Store) {
    let driver = DriverId::fresh();
    let driven = Record { driver: Some(driver.clone()), ..record(&subject()) };
    ok(store.create(&driven).await, "create");
    let request = request(Ask::Approve);
    for outcome in together((0..MANY).map(|_| store.ask(&driven.id, &request))).await {
        ok(outcome, "ask");
    }
    let expected: Vec<u64> = (1..).take(MANY).collect();
    assert_eq!(numbers(store, &driver).await, expected, "every request must be kept under its own number");
}

/// `ask` of a rollout that is over: `Conflict`, for nobody will hear it.
pub async fn nobody_asks_a_rollout_that_is_over(store: &dyn Store) {
    for standing in [Standing::Over, Standing::Promoted] {
        let open = record(&subject());
        let serial = ok(store.create(&open).await, "create");
        let closed = Record { standing, ..open };
        ok(store.update(&closed, serial).await, "closing");
        conflict(store.ask(&closed.id, &request(Ask::Abort)).await, "ask of a rollout that is over");
    }
}

/// `history` is the subject's own, newest first by creation, and no longer than asked.
pub async fn history_is_newest_first_and_limited(store: &dyn Store) {
    let (subject, other) = (subject(), subject());
    ok(store.create(&record(&other)).await, "create");
    let mut newest_first = Vec::new();
    for _ in 0..4 {
        let open = record(&subject);
        let serial = ok(store.create(&open).await, "create");
        let closed = Record { standing: Standing::Over, ..open };
        ok(store.update(&closed, serial).await, "closing");
        newest_first.insert(0, closed);
    }
    let open = record(&subject);
    ok(store.create(&open).await, "create");
    newest_first.insert(0, open);
    for limit in [0, 1, 3, 5, 100, usize::MAX] {
        let expected = &newest_first[..limit.min(newest_first.len())];
        let history = ok(store.history(&subject, limit).await, "history");
        assert_eq!(history, expected, "history of at most {limit} must be newest first");
    }
}

/// Bodies and ids of every kind of text come back byte for byte. NUL is left out: JSON text has none.
pub async fn any_text_comes_back_as_it_was(store: &dyn Store) {
    let planes = (1..=0x10_FFFF_u32).step_by(37).filter_map(char::from_u32);
    let texts = [
        String::new(),
        " \t\r\n leading and trailing \r\n".into(),
        r#"quotes ' " ` \ \\ $1 ?1 :a @b %s {} -- /* ; DROP TABLE"#.into(),
        "e\u{301} \u{e9} \u{212b} \u{c5} \u{1F469}\u{200D}\u{1F680} \u{202E}rtl\u{202C} \u{FEFF} \u{FFFF} \u{10FFFF}"
            .into(),
        (1..=0x1F_u8).map(char::from).collect(),
        planes.collect(),
    ];
    for text in texts {
        let mut record = record(&subject());
        record.body = text.as_str().into();
        let serial = ok(store.create(&record).await, "create with unusual text");
        holds(store, &record, serial, "with unusual text").await;
    }
    let tag = uuid::Uuid::new_v4().simple();
    for name in ["O'Brien \"x\"", "naïve \u{1F680}", "a/b?c=d&e#f%20", "CASE", "case", "e\u{301}", "\u{e9}"] {
        let named = Record {
            id: format!("{name} {tag}").try_into().expect("a name"),
            subject: format!("{name} {tag}").try_into().expect("a name"),
            driver: Some(format!("{name} {tag}").try_into().expect("a name")),
            ..record(&subject())
        };
        let serial = ok(store.create(&named).await, "create with an unusual name");
        holds(store, &named, serial, "with an unusual name").await;
        assert_eq!(claims(store, &named.subject).await.len(), 1, "subjects that look alike must not be one");
    }
}

/// A body of 600 KiB, more than two revisions at their limit.
pub async fn a_large_body_comes_back_as_it_was(store: &dyn Store) {
    let mut record = record(&subject());
    let serial = ok(store.create(&record).await, "create");
    record.body = large_body();
    let serial = ok(store.update(&record, serial).await, "update with a body of 600 KiB");
    holds(store, &record, serial, "with a body of 600 KiB").await;
    let created = Record { body: large_body(), ..self::record(&subject()) };
    let serial = ok(store.create(&created).await, "create with a body of 600 KiB");
    holds(store, &created, serial, "with a body of 600 KiB").await;
}

/// Every standing, with and without a driver, with formats and numbers at their limits.
pub async fn every_envelope_comes_back_as_it_was(store: &dyn Store) {
    for standing in [Standing::Open, Standing::Promoted, Standing::Over] {
        for (driver, format, heard) in [(None, 0, 0), (Some(DriverId::fresh()), u32::MAX, u64::from(u32::MAX) + 1)] {
            let record = Record { standing, driver, format, heard, ..record(&subject()) };
            let serial = ok(store.create(&record).await, "create");
            holds(store, &record, serial, "with this envelope").await;
            let history = ok(store.history(&record.subject, 1).await, "history");
            assert_eq!(history, std::slice::from_ref(&record), "history must hold the record as it is");
            let listed = claims(store, &record.subject).await.len();
            assert_eq!(listed == 1, standing == Standing::Open, "open must list what is open, and only that");
        }
    }
}

/// Of a store that keeps so many finished records of a subject: older ones go, but never the last promoted one, and
/// never the open one.
pub async fn retention(store: &dyn Store, keep: usize) {
    let subject = subject();
    let finish = async |standing| {
        let open = record(&subject);
        let serial = ok(store.create(&open).await, "create");
        let closed = Record { standing, ..open };
        ok(store.update(&closed, serial).await, "closing");
        closed.id
    };
    let replaced = finish(Standing::Promoted).await;
    let promoted = finish(Standing::Promoted).await;
    let mut finished = Vec::new();
    for _ in 0..keep + 2 {
        finished.push(finish(Standing::Over).await);
    }
    let open = record(&subject);
    ok(store.create(&open).await, "create");

    ok(store.load(&promoted).await, "load of the last promoted record, which is never trimmed");
    ok(store.load(&open.id).await, "load of the open record, which is never trimmed");
    not_found(store.load(&replaced).await, "load of a promoted record that was replaced and is too old");
    let mut expected = vec![open.id];
    expected.extend(finished.iter().rev().take(keep).cloned());
    expected.push(promoted);
    let history = ok(store.history(&subject, usize::MAX).await, "history");
    let ids: Vec<RolloutId> = history.into_iter().map(|record| record.id).collect();
    assert_eq!(ids, expected, "kept must be: the open one, the newest {keep} finished, the last promoted");
}

/// What one handle saved is there when the store is opened again, with serial, requests and beats. `open` is called
/// twice, the second time when the first handle is gone.
pub async fn reopening_finds_everything<S: Store, F: Future<Output = S>>(open: impl Fn() -> F) {
    let driver = DriverId::fresh();
    let driven = Record { driver: Some(driver.clone()), heard: 1, body: large_body(), ..record(&subject()) };
    let finished = Record { standing: Standing::Promoted, ..record(&subject()) };
    let store = open().await;
    let serial = ok(store.create(&Record { heard: 0, ..driven.clone() }).await, "create");
    ok(store.create(&finished).await, "create");
    for ask in [Ask::Pause, Ask::Abort] {
        ok(store.ask(&driven.id, &request(ask)).await, "ask");
    }
    ok(store.beat(&driver).await, "beat");
    let serial = ok(store.update(&driven, serial).await, "update");
    let beaten = beat(&store, &driven).await;
    drop(store);

    let store = open().await;
    holds(&store, &driven, serial, "after reopening").await;
    holds(&store, &finished, Serial(1), "after reopening").await;
    assert_eq!(beat(&store, &driven).await, beaten, "the beat must survive reopening");
    assert_eq!(numbers(&store, &driver).await, [2], "unheard requests must survive reopening");
    assert_ne!(beat(&store, &driven).await, beaten, "the beat must go on changing after reopening");
    ok(store.update(&driven, serial).await, "update after reopening");
}

/// Two handles on one store, as two processes have them, see each other's saves, and only one of them wins.
pub async fn two_handles_share_one_truth(ours: &dyn Store, theirs: &dyn Store) {
    let first = record(&subject());
    let serial = ok(ours.create(&first).await, "create");
    holds(theirs, &first, serial, "in the other handle").await;
    conflict(theirs.create(&record(&first.subject)).await, "create for a subject that is busy in the other handle");
    let second = Record { body: body("theirs"), ..first.clone() };
    let next = ok(theirs.update(&second, serial).await, "update in the other handle");
    conflict(ours.update(&first, serial).await, "update that the other handle overtook");
    holds(ours, &second, next, "in the first handle").await;

    let rivals: Vec<Record> = (0..MANY).map(|n| Record { body: body(&n.to_string()), ..first.clone() }).collect();
    let handles = [ours, theirs];
    let outcomes = together(rivals.iter().enumerate().map(|(n, rival)| handles[n % 2].update(rival, next))).await;
    let winner = only_winner(&outcomes, "update");
    for handle in handles {
        holds(handle, &rivals[winner], next.next(), "after updates from two handles").await;
    }
    let subject = subject();
    let rivals: Vec<Record> = (0..MANY).map(|_| record(&subject)).collect();
    let outcomes = together(rivals.iter().enumerate().map(|(n, rival)| handles[n % 2].create(rival))).await;
    only_winner(&outcomes, "create");
}

/// How many rivals a concurrent promise has.
const MANY: usize = 24;

fn subject() -> TargetId {
    format!("suite-{}", uuid::Uuid::new_v4().simple()).try_into().expect("short, printable text")
}

fn record(subject: &TargetId) -> Record {
    Record {
        id: RolloutId::fresh(subject),
        subject: subject.clone(),
        driver: Some(DriverId::fresh()),
        standing: Standing::Open,
        format: 1,
        heard: 0,
        body: body("new"),
    }
}

fn body(text: &str) -> std::sync::Arc<str> {
    format!("{{\"text\":{text:?}}}").into()
}

fn large_body() -> std::sync::Arc<str> {
    let text: String = ('a'..='z').cycle().take(600 * 1024).collect();
    body(&text)
}

fn request(ask: Ask) -> Request {
    Request::new(ask, "suite", "because the suite says so").expect("a short name")
}

#[track_caller]
fn ok<T>(result: Result<T>, what: &str) -> T {
    result.unwrap_or_else(|e| panic!("{what} must work: {}", e.chain()))
}

#[track_caller]
fn conflict<T>(result: Result<T>, what: &str) -> Error {
    refused(result, what, ErrorKind::Conflict)
}

#[track_caller]
fn not_found<T>(result: Result<T>, what: &str) {
    refused(result, what, ErrorKind::NotFound);
}

#[track_caller]
fn refused<T>(result: Result<T>, what: &str, kind: ErrorKind) -> Error {
    let Err(error) = result else { panic!("{what} must be refused ({kind}), and it worked") };
    assert_eq!(error.kind(), kind, "{what} must be {kind}: {}", error.chain());
    error
}

async fn holds(store: &dyn Store, record: &Record, serial: Serial, when: &str) {
    let (found, seen) = ok(store.load(&record.id).await, "load");
    assert_eq!(seen, serial, "the serial of {} {when}", record.id);
    assert_eq!(found, *record, "the record of {} {when}", record.id);
    assert!(found.body == record.body, "the body of {} {when} is not what was saved", record.id);
}

async fn claims(store: &dyn Store, subject: &TargetId) -> Vec<Claim> {
    ok(store.open().await, "open").into_iter().filter(|claim| claim.subject == *subject).collect()
}

async fn beat(store: &dyn Store, record: &Record) -> Option<u64> {
    let claims = claims(store, &record.subject).await;
    claims.iter().find(|claim| claim.id == record.id).expect("open must list an open rollout").beat
}

async fn numbers(store: &dyn Store, driver: &DriverId) -> Vec<u64> {
    ok(store.beat(driver).await, "beat").into_iter().map(|(_, asked)| asked.number).collect()
}

#[track_caller]
fn only_winner(outcomes: &[Result<Serial>], what: &str) -> usize {
    let mut winners = Vec::new();
    for (n, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Ok(_) => winners.push(n),
            Err(e) => assert_eq!(e.kind(), ErrorKind::Conflict, "a {what} that lost: {}", e.chain()),
        }
    }
    assert_eq!(winners.len(), 1, "of {} concurrent calls of {what} exactly one must win", outcomes.len());
    winners[0]
}

/// Polls all of them side by side, in one task.
async fn together<T, F: Future<Output = T> + Send>(calls: impl Iterator<Item = F>) -> Vec<T> {
    let mut calls: Vec<(Pin<Box<F>>, Option<T>)> = calls.map(|call| (Box::pin(call), None)).collect();
    poll_fn(|context| {
        let mut pending = false;
        for (call, done) in &mut calls {
            if done.is_none() {
                match call.as_mut().poll(context) {
                    Poll::Ready(value) => *done = Some(value),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    calls.into_iter().map(|(_, done)| done.expect("all are done")).collect()
}
