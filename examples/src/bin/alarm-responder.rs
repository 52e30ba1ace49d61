//! A Lambda function that rolls back when an alarm of CloudWatch fires.
//!
//! Give the alarm this function as its action, or an SNS topic that the function is subscribed to. Configured by its
//! environment:
//!
//! - `RULES`: which alarm takes which alias back, as `checkout-prod-alias-errors=checkout:live`, several with commas between.
//! - `TOPICS`: ARNs of the SNS topics that are believed, with commas between; none where alarms invoke it themselves.
//!
//! Its role needs `lambda:GetAlias` and `lambda:UpdateAlias` on the functions of the rules. Give the library's `Responder` a
//! store as well where rollouts run: then it asks the open rollout, which goes back and says so in its record.

use std::{env, sync::Arc};

use lambda_runtime::{Error, LambdaEvent, service_fn};
use rollback_aws::{account::Account, responder::Responder};
use serde_json::{Value, json};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let account = Account::from_env().await.map_err(|e| e.chain())?;
    let [rules, topics] = ["RULES", "TOPICS"].map(|name| env::var(name).unwrap_or_default());
    let responder = Arc::new(configured(&account, &rules, &topics).map_err(|e| e.chain())?);
    lambda_runtime::run(service_fn(move |event: LambdaEvent<Value>| {
        let responder = Arc::clone(&responder);
        async move {
            // An error makes Lambda invoke it again: twice for alarms, for hours with SNS.
            let answers = responder.invoked(&event.payload).await.map_err(|e| e.chain())?;
            let answers: Vec<String> = answers.iter().map(ToString::to_string).collect();
            println!("{}", answers.join("; "));
            Ok::<Value, Error>(json!(answers))
        }
    }))
    .await
}

/// The responder of these rules and topics.
fn configured(account: &Account, rules: &str, topics: &str) -> rollback_core::Result<Responder> {
    let parts = |text: &str| -> Vec<String> {
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(String::from).collect()
    };
    let responder = parts(topics).into_iter().fold(Responder::new(), Responder::topic);
    let rules = parts(rules);
    if rules.is_empty() {
        return Err(rollback_core::Error::invalid("RULES is empty; ALARM=FUNCTION:ALIAS is accepted"));
    }
    rules.iter().try_fold(responder, |responder, rule| {
        let (alarm, alias) = rule.rsplit_once('=').ok_or_else(|| {
            rollback_core::Error::invalid(format!("{rule:?} in RULES is no rule; ALARM=FUNCTION:ALIAS is accepted"))
        })?;
        responder.alias(alarm, account, alias)
    })
}
