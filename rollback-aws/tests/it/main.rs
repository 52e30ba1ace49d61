//! Tests of `rollback-aws`, all on the simulator: nothing here needs an account.

mod boto3;
mod cloudformation_stack;
mod cloudwatch_gates;
mod cloudwatch_room;
mod cloudwatch_set;
mod codedeploy_back;
mod codedeploy_group;
mod codedeploy_preflight;
mod codedeploy_room;
mod codepipeline_stage;
mod dynamodb_replicas;
mod dynamodb_room;
mod dynamodb_store;
mod ecs_room;
mod ecs_service;
mod frame;
mod lambda_alias;
mod lambda_publish;
mod lambda_room;
mod responder;
mod route53;
mod shelves;
mod sns;
mod support;
