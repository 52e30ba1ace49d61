//! What a store does, in statements. Writes run inside a transaction that somebody else begins and ends.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    Asked, Claim, Record, Standing,
    session::{Param, Row, Session},
};
use crate::{
    error::{Error, ErrorKind, Result},
    model::{DriverId, RolloutId, Serial, TargetId},
    request::Request,
    store::{busy, elsewhere, over, stale, taken, unknown},
};
use Param::{Int, Maybe, Text};

/// One operation that changes something, as a value: it may be queued, and run again when its transaction was lost.
pub(super) enum Write {
    Create(Record),
    Update(Record, Serial),
    Beat(DriverId),
    Ask(RolloutId, Request),
    Import(Vec<(Record, Serial)>),
    #[cfg(feature = "testing")]
    Batch(String),
}

/// What came of a write.
pub(super) enum Answer {
    Serial(Serial),
    Asked(Vec<(RolloutId, Asked)>),
    Count(usize),
    Done,
}

impl Write {
    /// Runs the statements. On an error the caller rolls back what they did.
    pub(super) async fn run(&self, session: &mut Session<'_>, keep: i64) -> Result<Answer> {
        match self {
            Self::Create(record) => create(session, record, keep).await.map(Answer::Serial),
            Self::Update(record, expected) => update(session, record, *expected, keep).await.map(Answer::Serial),
            Self::Beat(driver) => beat(session, driver).await.map(Answer::Asked),
            Self::Ask(id, request) => ask(session, id, request).await.map(|()| Answer::Done),
            Self::Import(records) => import(session, records).await.map(Answer::Count),
            #[cfg(feature = "testing")]
            Self::Batch(sql) => session.batch(sql.clone()).await.map(|()| Answer::Done),
        }
    }
}

async fn create(session: &mut Session<'_>, record: &Record, keep: i64) -> Result<Serial> {
    if insert(session, record, Serial(1)).await? {
        trim(session, record, keep).await?;
        return Ok(Serial(1));
    }
    match load(session, &record.id).await? {
        Some((found, Serial(1))) if found == *record => Ok(Serial(1)),
        Some(_) => Err(taken(&record.id)),
        None => Err(busy_with(session, record).await?),
    }
}

/// An update of a record that was open, stays open and has heard nothing, which is one statement. `false` when it is
/// another kind of update, or is to be refused: then nothing was changed.
///
/// Most saves are this one, the save of a trip among them. It names no column of an index, so that SQLite writes none.
pub(super) async fn update_open(session: &mut Session<'_>, record: &Record, expected: Serial) -> Result<bool> {
    const UPDATE: &str = "
        UPDATE rollback_rollouts SET driver = $4, format = $5, body = $6, serial = serial + 1
        WHERE id = $1 AND serial = $2 AND subject = $3 AND standing = 'open' AND heard = 0";
    let Ok(serial) = i64::try_from(expected.0) else { return Ok(false) };
    if record.standing != Standing::Open || record.heard > 0 {
        return Ok(false);
    }
    let params = [
        Text(record.id.as_str()),
        Int(serial),
        Text(record.subject.as_str()),
        Maybe(record.driver.as_ref().map(DriverId::as_str)),
        Int(record.format.into()),
        Text(&record.body),
    ];
    Ok(session.changed(UPDATE, &params).await? == 1)
}

async fn update(session: &mut Session<'_>, record: &Record, expected: Serial, keep: i64) -> Result<Serial> {
    // The last line is for a record that is opened again; the unique index stands behind it.
    const UPDATE: &str = "
        UPDATE rollback_rollouts SET driver = $4, standing = $5, format = $6, heard = $7, body = $8, serial = serial + 1
        WHERE id = $1 AND serial = $2 AND subject = $3 AND ($5 <> 'open' OR standing = 'open' OR NOT EXISTS
            (SELECT 1 FROM rollback_rollouts AS other WHERE other.subject = $3 AND other.standing = 'open'))
        RETURNING serial";
    const FORGET: &str = "DELETE FROM rollback_requests WHERE rollout = $1 AND number <= $2";
    if update_open(session, record, expected).await? {
        return Ok(expected.next());
    }
    let over = record.standing != Standing::Open;
    // No record has a serial that does not fit, so -1 is stale as it should be.
    let serial = i64::try_from(expected.0).unwrap_or(-1);
    let params = [
        Text(record.id.as_str()),
        Int(serial),
        Text(record.subject.as_str()),
        Maybe(record.driver.as_ref().map(DriverId::as_str)),
        Text(name(record.standing)),
        Int(record.format.into()),
        Int(heard(record)?),
        Text(&record.body),
    ];
    if session.row(UPDATE, &params).await?.is_none() {
        return Err(match load(session, &record.id).await? {
            None => unknown(&record.id),
            Some((_, seen)) if seen != expected => stale(&record.id, seen, expected),
            Some((found, _)) if found.subject != record.subject => elsewhere(&record.id, &found.subject),
            Some(_) => busy_with(session, record).await?,
        });
    }
    if over {
        session.rows(FORGET, &[Text(record.id.as_str()), Int(i64::MAX)]).await?;
        trim(session, record, keep).await?;
    } else if record.heard > 0 {
        session.rows(FORGET, &[Text(record.id.as_str()), Int(heard(record)?)]).await?;
    }
    Ok(expected.next())
}

async fn beat(session: &mut Session<'_>, driver: &DriverId) -> Result<Vec<(RolloutId, Asked)>> {
    const SQLITE: &str = "
        INSERT INTO rollback_drivers (driver, beat, changed) VALUES ($1, 1, unixepoch())
        ON CONFLICT (driver) DO UPDATE SET beat = rollback_drivers.beat + 1, changed = excluded.changed
        RETURNING beat";
    const POSTGRES: &str = "
        INSERT INTO rollback_drivers (driver, beat, changed) VALUES ($1, 1, extract(epoch FROM now())::bigint)
        ON CONFLICT (driver) DO UPDATE SET beat = rollback_drivers.beat + 1, changed = excluded.changed
        RETURNING beat";
    // By the database's own time: the one clock that all processes share.
    const PRUNE: &str = "
        DELETE FROM rollback_drivers WHERE driver NOT IN
            (SELECT driver FROM rollback_rollouts WHERE standing = 'open' AND driver IS NOT NULL)
        AND changed < (SELECT changed FROM rollback_drivers AS us WHERE us.driver = $1) - 86400";
    const ASKED: &str = "
        SELECT q.rollout, q.number, q.request FROM rollback_requests AS q
        JOIN rollback_rollouts AS r ON r.id = q.rollout
        WHERE r.driver = $1 AND r.standing = 'open' AND q.number > r.heard ORDER BY q.rollout, q.number";
    let us = [Text(driver.as_str())];
    let beat = session.row(if session.is_sqlite() { SQLITE } else { POSTGRES }, &us).await?;
    // A process starts seldom, which is often enough to forget those that ended.
    if beat.map(|row| row.int(0)).transpose()? == Some(1) {
        session.rows(PRUNE, &us).await?;
    }
    let mut asked = Vec::new();
    for row in session.rows(ASKED, &us).await? {
        let id = RolloutId::try_from(row.text(0)?).map_err(|e| e.during(session.place().corrupt()))?;
        let number = row.count(1)?;
        match serde_json::from_str::<Request>(&row.text(2)?) {
            Ok(request) => asked.push((id, Asked { number, request })),
            // A newer process may ask what this version cannot; the beat and the other requests must not suffer.
            Err(_) => tracing::warn!(rollout = %id, number, "a request that this version cannot read is left alone"),
        }
    }
    Ok(asked)
}

async fn ask(session: &mut Session<'_>, id: &RolloutId, request: &Request) -> Result<()> {
    const NUMBER: &str = "
        UPDATE rollback_rollouts SET asked = CASE WHEN asked < heard THEN heard ELSE asked END + 1
        WHERE id = $1 AND standing = 'open' RETURNING asked";
    const KEEP: &str = "INSERT INTO rollback_requests (rollout, number, request) VALUES ($1, $2, $3)";
    let text = serde_json::to_string(request)
        .map_err(|e| Error::new(ErrorKind::Internal, "a request cannot be written as JSON").because(e))?;
    match session.row(NUMBER, &[Text(id.as_str())]).await? {
        Some(row) => {
            session.rows(KEEP, &[Text(id.as_str()), Int(row.int(0)?), Text(&text)]).await?;
            Ok(())
        }
        None => Err(match load(session, id).await? {
            Some(_) => over(id),
            None => unknown(id),
        }),
    }
}

async fn import(session: &mut Session<'_>, records: &[(Record, Serial)]) -> Result<usize> {
    let mut new = 0;
    for (record, serial) in records {
        if insert(session, record, *serial).await? {
            new += 1;
            continue;
        }
        match load(session, &record.id).await? {
            Some((found, seen)) if seen == *serial && same(&found, record) => {}
            Some(_) => return Err(taken(&record.id)),
            None => return Err(busy_with(session, record).await?),
        }
    }
    Ok(new)
}

/// Whether two records say the same. An export may have been laid out anew on its way here.
fn same(a: &Record, b: &Record) -> bool {
    let json = |record: &Record| serde_json::from_str::<serde_json::Value>(&record.body).ok();
    let envelope = |record: &Record| Record { body: "".into(), ..record.clone() };
    envelope(a) == envelope(b) && (a.body == b.body || json(a).is_some_and(|body| Some(body) == json(b)))
}

/// Adds a row, unless its id is taken or its subject busy.
async fn insert(session: &mut Session<'_>, record: &Record, serial: Serial) -> Result<bool> {
    const INSERT: &str = "
        INSERT INTO rollback_rollouts (id, subject, driver, standing, format, serial, heard, asked, body)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $7, $8) ON CONFLICT DO NOTHING RETURNING serial";
    let params = [
        Text(record.id.as_str()),
        Text(record.subject.as_str()),
        Maybe(record.driver.as_ref().map(DriverId::as_str)),
        Text(name(record.standing)),
        Int(record.format.into()),
        Int(i64::try_from(serial.0).map_err(|_| Error::invalid(format!("serial {serial} is too large")))?),
        Int(heard(record)?),
        Text(&record.body),
    ];
    Ok(session.row(INSERT, &params).await?.is_some())
}

/// The error of a record whose subject has another open rollout.
async fn busy_with(session: &mut Session<'_>, record: &Record) -> Result<Error> {
    const OPEN: &str = "SELECT id FROM rollback_rollouts WHERE subject = $1 AND standing = 'open'";
    Ok(match session.row(OPEN, &[Text(record.subject.as_str())]).await? {
        Some(row) => busy(&record.subject, &RolloutId::try_from(row.text(0)?)?),
        // It was closed since our statement ran.
        None => Error::new(ErrorKind::Conflict, format!("{} was busy a moment ago; try again", record.subject)),
    })
}

/// Forgets a subject's oldest finished records: all but the newest `keep`, the last promoted and the one just saved.
async fn trim(session: &mut Session<'_>, saved: &Record, keep: i64) -> Result<()> {
    const TRIM: &str = "
        DELETE FROM rollback_rollouts WHERE subject = $1 AND standing <> 'open' AND id <> $2
        AND seq NOT IN (SELECT seq FROM rollback_rollouts WHERE subject = $1 AND standing <> 'open'
            ORDER BY seq DESC LIMIT $3)
        AND seq NOT IN (SELECT seq FROM rollback_rollouts WHERE subject = $1 AND standing = 'promoted'
            ORDER BY seq DESC LIMIT 1)";
    if saved.standing != Standing::Open {
        session.rows(TRIM, &[Text(saved.subject.as_str()), Text(saved.id.as_str()), Int(keep)]).await?;
    }
    Ok(())
}

pub(super) async fn load(session: &mut Session<'_>, id: &RolloutId) -> Result<Option<(Record, Serial)>> {
    const LOAD: &str = "
        SELECT id, subject, driver, standing, format, heard, body, serial FROM rollback_rollouts WHERE id = $1";
    session.row(LOAD, &[Text(id.as_str())]).await?.map(|row| record(session, &row)).transpose()
}

pub(super) async fn history(session: &mut Session<'_>, subject: &TargetId, limit: usize) -> Result<Vec<Record>> {
    const HISTORY: &str = "
        SELECT id, subject, driver, standing, format, heard, body, serial FROM rollback_rollouts
        WHERE subject = $1 ORDER BY seq DESC LIMIT $2";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = session.rows(HISTORY, &[Text(subject.as_str()), Int(limit)]).await?;
    rows.iter().map(|row| record(session, row).map(|(record, _)| record)).collect()
}

pub(super) async fn all(session: &mut Session<'_>) -> Result<Vec<(Record, Serial)>> {
    const ALL: &str = "
        SELECT id, subject, driver, standing, format, heard, body, serial FROM rollback_rollouts ORDER BY seq";
    let rows = session.rows(ALL, &[]).await?;
    rows.iter().map(|row| record(session, row)).collect()
}

pub(super) async fn open(session: &mut Session<'_>) -> Result<Vec<Claim>> {
    const OPEN: &str = "
        SELECT r.id, r.subject, r.driver, d.beat FROM rollback_rollouts AS r
        LEFT JOIN rollback_drivers AS d ON d.driver = r.driver WHERE r.standing = 'open' ORDER BY r.id";
    let claim = |row: &Row<'_>| {
        Ok(Claim {
            id: row.text(0)?.try_into()?,
            subject: row.text(1)?.try_into()?,
            driver: row.maybe_text(2)?.map(DriverId::try_from).transpose()?,
            beat: row.maybe_int(3)?.map(i64::cast_unsigned),
        })
    };
    let rows = session.rows(OPEN, &[]).await?;
    rows.iter().map(|row| claim(row).map_err(|e: Error| e.during(session.place().corrupt()))).collect()
}

fn record(session: &Session<'_>, row: &Row<'_>) -> Result<(Record, Serial)> {
    let read = || {
        let record = Record {
            id: row.text(0)?.try_into()?,
            subject: row.text(1)?.try_into()?,
            driver: row.maybe_text(2)?.map(DriverId::try_from).transpose()?,
            standing: standing(&row.text(3)?).ok_or_else(|| session.place().corrupt())?,
            format: u32::try_from(row.int(4)?).map_err(|_| session.place().corrupt())?,
            heard: row.count(5)?,
            body: row.text(6)?.into(),
        };
        Ok((record, Serial(row.count(7)?)))
    };
    read().map_err(|e: Error| e.during(session.place().corrupt()))
}

const fn name(standing: Standing) -> &'static str {
    match standing {
        Standing::Open => "open",
        Standing::Promoted => "promoted",
        Standing::Over => "over",
    }
}

fn standing(name: &str) -> Option<Standing> {
    [Standing::Open, Standing::Promoted, Standing::Over].into_iter().find(|standing| self::name(*standing) == name)
}

fn heard(record: &Record) -> Result<i64> {
    i64::try_from(record.heard).map_err(|_| {
        Error::invalid(format!("rollout {} has heard request {}; no store has that many", record.id, record.heard))
    })
}

/// All records of a store as JSON.
#[derive(Serialize, Deserialize)]
pub(super) struct Export {
    rollback_export: u32,
    records: Vec<Exported>,
}

#[derive(Serialize, Deserialize)]
struct Exported {
    id: RolloutId,
    subject: TargetId,
    driver: Option<DriverId>,
    standing: Standing,
    format: u32,
    heard: u64,
    serial: Serial,
    /// The body as it is, so that no number is rounded on the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<Box<RawValue>>,
    /// A body that is not JSON, so that one corrupt record does not keep the others from being saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

impl Export {
    const FORMAT: u32 = 1;

    pub(super) fn new(records: Vec<(Record, Serial)>) -> Self {
        let exported = |(record, serial): (Record, Serial)| {
            let body = RawValue::from_string(record.body.as_ref().into()).ok();
            let text = if body.is_some() { None } else { Some(record.body.as_ref().into()) };
            Exported {
                id: record.id,
                subject: record.subject,
                driver: record.driver,
                standing: record.standing,
                format: record.format,
                heard: record.heard,
                serial,
                body,
                text,
            }
        };
        Self { rollback_export: Self::FORMAT, records: records.into_iter().map(exported).collect() }
    }

    /// The records, if all of them are good.
    pub(super) fn records(self) -> Result<Vec<(Record, Serial)>> {
        if self.rollback_export != Self::FORMAT {
            let found = self.rollback_export;
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the export has format {found}; this version reads format {}", Self::FORMAT),
            ));
        }
        let record = |exported: Exported| {
            let body = match (exported.body, exported.text) {
                (Some(body), None) => body.get().into(),
                (None, Some(text)) => text.into(),
                _ => return Err(Error::invalid(format!("rollout {} in the export needs one body", exported.id))),
            };
            if exported.serial < Serial(1) {
                return Err(Error::invalid(format!("rollout {} in the export has serial 0", exported.id)));
            }
            let record = Record {
                id: exported.id,
                subject: exported.subject,
                driver: exported.driver,
                standing: exported.standing,
                format: exported.format,
                heard: exported.heard,
                body,
            };
            Ok((record, exported.serial))
        };
        self.records.into_iter().map(record).collect()
    }
}
