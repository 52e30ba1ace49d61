//! What goes wrong, when, and how often.

use std::time::Duration;

use super::wire::{Called, Refusal};

/// One thing that goes wrong with calls of the simulator.
///
/// ```
/// # use std::time::Duration;
/// # use rollback_aws::testing::fault::{Fault, Trouble};
/// // The second and third UpdateAlias are carried out, and their answers are lost.
/// let fault = Fault::of("lambda:UpdateAlias", Trouble::LoseAnswer).after(1).times(2);
/// ```
#[derive(Clone, Debug)]
pub struct Fault {
    action: Option<String>,
    trouble: Trouble,
    skip: u64,
    times: u64,
}

/// What can go wrong with a call.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// It is throttled, as its service spells that.
    Throttle,
    /// It is refused with this, as its service writes errors.
    Refuse(Refusal),
    /// Something between answers with a page of HTML.
    Page {
        /// The status.
        status: u16,
        /// The page.
        body: &'static str,
    },
    /// It never arrives, and the connection breaks.
    LoseRequest,
    /// It is carried out, and the connection breaks before the answer.
    LoseAnswer,
    /// It is carried out at once and answered this much later.
    DelayAnswer(Duration),
    /// The connection breaks, and the call arrives this much later all the same.
    DelayRequest(Duration),
}

impl Fault {
    /// The next call of any operation.
    pub const fn any(trouble: Trouble) -> Self {
        Self { action: None, trouble, skip: 0, times: 1 }
    }

    /// The next call of this operation, as `lambda:UpdateAlias`.
    pub fn of(action: impl Into<String>, trouble: Trouble) -> Self {
        Self { action: Some(action.into()), ..Self::any(trouble) }
    }

    /// Only after so many calls that go well.
    #[must_use]
    pub const fn after(mut self, calls: u64) -> Self {
        self.skip = calls;
        self
    }

    /// So many times in a row.
    #[must_use]
    pub const fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }
}

/// The trouble that this call runs into; what is used up is removed.
pub(super) fn due(faults: &mut Vec<Fault>, called: &Called) -> Option<Trouble> {
    let action = called.action();
    let at = faults.iter_mut().position(|fault| {
        let meant = fault.action.as_ref().is_none_or(|meant| *meant == action);
        let now = meant && fault.skip == 0;
        fault.skip = fault.skip.saturating_sub(u64::from(meant));
        now
    })?;
    let trouble = faults[at].trouble.clone();
    faults[at].times = faults[at].times.saturating_sub(1);
    if faults[at].times == 0 {
        faults.remove(at);
    }
    Some(trouble)
}
