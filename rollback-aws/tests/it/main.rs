//! Tests of `rollback-aws`, all on the simulator: nothing here needs an account.

mod boto3;
mod cloudformation_stack;
mod cloudwatch_gates;
mod cloudwatch_room;
mod cloudwatch_set;
mod codepipeline_stage;
mod frame;
mod lambda_alias;
mod lambda_publish;
mod lambda_room;
mod responder;
mod support;
