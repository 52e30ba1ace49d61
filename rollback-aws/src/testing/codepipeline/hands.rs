//! CodePipeline by hand: what a test sets up and looks at without a call of the API.

use std::{collections::BTreeMap, time::Duration};

use rollback_core::clock::Clock as _;
use serde_json::json;

use super::Pipeline;
use crate::testing::{ACCOUNT, Simulator, World};

/// Pipelines, without an HTTP call: somebody else's hands.
#[derive(Clone, Copy, Debug)]
pub struct Hands<'a>(pub(in crate::testing) &'a Simulator);

/// All pipelines as they were once, to go back to.
#[derive(Clone, Debug)]
pub struct Snapshot(BTreeMap<String, Pipeline>);

impl Hands<'_> {
    /// So long an execution is in a stage; twenty seconds at first. For pipelines that are created from now on.
    pub fn takes(&self, time: Duration) {
        self.0.world().codepipeline.takes = time;
    }

    /// A pipeline of the type V2 with these stages, the first of which has the source action `Source`, and one execution of
    /// this revision that has succeeded in all of them.
    ///
    /// # Panics
    /// When there are less than two stages.
    pub fn create(&self, name: &str, stages: &[&str], revision: &str) {
        assert!(stages.len() > 1, "a pipeline has two stages or more");
        let actions = |at: usize| {
            let (action, category, provider) =
                if at == 0 { ("Source", "Source", "CodeCommit") } else { ("Act", "Deploy", "CodeDeploy") };
            let kind = json!({ "category": category, "owner": "AWS", "provider": provider, "version": "1" });
            json!([{ "name": action, "actionTypeId": kind, "runOrder": 1 }])
        };
        let stages: Vec<_> =
            stages.iter().enumerate().map(|(at, stage)| json!({ "name": stage, "actions": actions(at) })).collect();
        let declared = json!({
            "name": name, "roleArn": format!("arn:aws:iam::{ACCOUNT}:role/pipeline"), "version": 1,
            "artifactStore": { "type": "S3", "location": "artifacts" },
            "pipelineType": "V2", "executionMode": "SUPERSEDED", "stages": stages,
        });
        self.with(|world, now| {
            let mut pipeline = Pipeline::new(declared.clone(), Duration::ZERO);
            let sources = BTreeMap::from([("Source".to_owned(), revision.to_owned())]);
            pipeline.heads.clone_from(&sources);
            pipeline.start(&sources, "CreatePipeline", None, now);
            pipeline.pass(now);
            let takes = world.codepipeline.takes;
            world.codepipeline.pipelines.insert(name.into(), pipeline.at_pace(takes));
        });
    }

    /// Somebody pushes a revision, and an execution of it starts by itself.
    pub fn push(&self, name: &str, revision: &str) -> String {
        let sources = BTreeMap::from([("Source".to_owned(), revision.to_owned())]);
        self.pipeline(name, |pipeline, now| {
            pipeline.heads.clone_from(&sources);
            pipeline.start(&sources, "CloudWatchEvent", None, now)
        })
    }

    /// Somebody changes the pipeline's structure, which has another version from then on.
    pub fn edit(&self, name: &str, edit: impl FnOnce(&mut serde_json::Value)) {
        self.pipeline(name, |pipeline, _| {
            let version = pipeline.version() + 1;
            edit(&mut pipeline.declared);
            pipeline.declared["version"] = json!(version);
        });
    }

    /// Changes what is declared of it without a new version, as it might have been created.
    pub fn declare(&self, name: &str, edit: impl FnOnce(&mut serde_json::Value)) {
        self.pipeline(name, |pipeline, _| edit(&mut pipeline.declared));
    }

    /// From now on this stage fails for new executions, for this reason; with `None` no more.
    pub fn fail(&self, name: &str, stage: &str, why: Option<&str>) {
        self.stage(name, stage, |stage| stage.fails = why.map(Into::into));
    }

    /// From now on this stage fails for rollbacks, for this reason; with `None` no more.
    pub fn fail_rollback(&self, name: &str, stage: &str, why: Option<&str>) {
        self.stage(name, stage, |stage| stage.fails_back = why.map(Into::into));
    }

    /// Somebody disables the transition into this stage, for this reason, or enables it.
    pub fn close(&self, name: &str, stage: &str, why: Option<&str>) {
        self.stage(name, stage, |stage| stage.closed = why.map(Into::into));
    }

    /// What the stage has last succeeded with: the revision of `Source`.
    pub fn serves(&self, name: &str, stage: &str) -> Option<String> {
        self.pipeline(name, |pipeline, _| {
            let at = pipeline.stage(stage).ok()?;
            let (id, status) = pipeline.stages[at].latest.clone()?;
            let of = pipeline.executions.iter().find(|it| it.id == id && status == "Succeeded")?;
            of.sources.get("Source").cloned()
        })
    }

    /// Each execution in order: its type, its revision, and what became of it.
    pub fn executions(&self, name: &str) -> Vec<(String, String, String)> {
        self.pipeline(name, |pipeline, _| {
            let told = |it: &super::Execution| {
                (it.kind.into(), it.sources.get("Source").cloned().unwrap_or_default(), it.status.into())
            };
            pipeline.executions.iter().map(told).collect()
        })
    }

    /// All pipelines as they are.
    pub fn snapshot(&self) -> Snapshot {
        self.with(|world, _| Snapshot(world.codepipeline.pipelines.clone()))
    }

    /// All pipelines as they were.
    pub fn restore(&self, snapshot: &Snapshot) {
        self.with(|world, _| world.codepipeline.pipelines.clone_from(&snapshot.0));
    }

    fn stage(&self, name: &str, stage: &str, act: impl FnOnce(&mut super::pipeline::Stage)) {
        self.pipeline(name, |pipeline, _| {
            let at = pipeline.stage(stage).unwrap_or_else(|refusal| panic!("{}", refusal.message));
            act(&mut pipeline.stages[at]);
        });
    }

    fn pipeline<T>(&self, name: &str, act: impl FnOnce(&mut Pipeline, jiff::Timestamp) -> T) -> T {
        self.with(|world, now| {
            let pipeline = world.codepipeline.pipelines.get_mut(name);
            act(pipeline.unwrap_or_else(|| panic!("there is no pipeline {name}")), now)
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut World, jiff::Timestamp) -> T) -> T {
        let now = self.0.clock().now();
        let mut world = self.0.world();
        world.catch_up(now);
        act(&mut world, now)
    }
}
