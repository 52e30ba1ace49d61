//! Tests of `rollback-aws`, all on the simulator: nothing here needs an account.

mod boto3;
mod frame;
mod lambda_alias;
mod lambda_publish;
mod lambda_room;
mod support;
