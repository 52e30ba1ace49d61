//! Tests of `rollback-aws`, all on the simulator: nothing here needs an account.

mod frame;
mod lambda_room;
