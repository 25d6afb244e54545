//! What an application says about a kind of task.

use serde::{Serialize, de::DeserializeOwned};

/// A request to do work of one type. The struct is the payload.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use switchback_common::Task;
///
/// #[derive(Serialize, Deserialize)]
/// struct SendEmail { to: String, template: String }
///
/// impl Task for SendEmail {
///     const TYPE: &'static str = "send_email";
/// }
/// ```
pub trait Task: Serialize + DeserializeOwned + Send + 'static {
    /// The task type: names the queue. Must match `[A-Za-z0-9._-]{1,64}`.
    const TYPE: &'static str;
}
