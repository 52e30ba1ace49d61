//! Gates that ask the cluster how the candidate's pods do.

mod judgement;
mod pod;
