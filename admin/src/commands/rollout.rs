//! `rollout start | status | pause | resume | promote | abort`.

mod objections;
mod view;

use std::path::Path;

use switchback_common::{
    Queue, Version,
    config::read_toml,
    envelope::clip,
    store::{
        gate::Sealed,
        rollout::{RolloutStore, Step, Stepped},
    },
};
use switchback_gates::{
    Gate, GateError, Share,
    admin::{Shown, operation_id},
    readiness::{Level, Shortage, part},
    rollout::{self, Record, Setting, Spec, Status, counts},
};

use self::{
    objections::{Facts, Objection, objections},
    view::{RolloutView, ShortView},
};
use crate::{
    args::{Change, RolloutVerb, StartArgs},
    change::{self, Answer, committed, is_passable, signature},
    context::Context,
    exit::Failure,
    output::{Output, tell, warn},
    readiness,
    text::plain,
    view::words,
};

/// Times a step is made anew because the gate, or the rollout, moved in between.
const TRIES: usize = 5;
/// As long as the history keeps.
const MAX_FORCED_BYTES: usize = 1_000;
const MAX_FILE_BYTES: u64 = 256 * 1024;

pub(crate) async fn run(context: &Context, out: &mut Output, verb: RolloutVerb) -> Result<(), Failure> {
    let on = |task_type| On {
        context,
        queue: context.queue(task_type),
    };
    match verb {
        RolloutVerb::Start(args) => on(args.task_type.clone()).start(out, &args).await,
        RolloutVerb::Status { task_type } => on(task_type).status(out, false).await,
        RolloutVerb::Pause { task_type, change } => {
            on(task_type)
                .turn(out, &change, "paused", |record, _, setting| {
                    rollout::pause(record, setting)
                })
                .await
        }
        RolloutVerb::Resume { task_type, change } => {
            on(task_type)
                .turn(out, &change, "resumed", |record, _, setting| {
                    rollout::resume(record, setting)
                })
                .await
        }
        RolloutVerb::Promote { task_type, all, change } => {
            on(task_type)
                .turn(out, &change, "promoted", |record, _, setting| {
                    rollout::promote(record, all, setting)
                })
                .await
        }
        RolloutVerb::Abort {
            task_type,
            keep: true,
            change,
        } if !is_readable(context, &context.queue(task_type.clone())).await? => on(task_type).bury(&change).await,
        RolloutVerb::Abort {
            task_type,
            keep,
            change,
        } => {
            on(task_type)
                .turn(out, &change, "aborted", |record, gate, setting| {
                    // Nobody may be there who would see that it is over, and it must not stand in the way of the next one.
                    let keep = keep || !record.agrees_with(gate);
                    rollout::abort(record, gate, keep, setting)
                })
                .await
        }
    }
}

/// The record of the queue's rollout with what was counted until now, and Redis's clock.
pub(crate) async fn look(context: &Context, queue: &Queue) -> Result<Option<(Record, u64)>, Failure> {
    let store = RolloutStore::new(&context.store, queue);
    let (fields, now_us) = store.read().await?;
    let record = Record::parse(&fields).map_err(|e| Failure::Other(format!("{queue}: {e}")))?;
    Ok(record.map(|record| (record, now_us)))
}

/// Whether there is nothing wrong with the record. A look that failed says nothing of it.
async fn is_readable(context: &Context, queue: &Queue) -> Result<bool, Failure> {
    let (fields, _) = RolloutStore::new(&context.store, queue).read().await?;
    Ok(Record::parse(&fields).is_ok())
}

/// The commands on one queue.
struct On<'a> {
    context: &'a Context,
    queue: Queue,
}

impl On<'_> {
    fn store(&self) -> RolloutStore {
        RolloutStore::new(&self.context.store, &self.queue)
    }

    fn setting(&self, change: &Change, rev: u64, now_us: u64, op: &str) -> Setting {
        let (by, why) = signature(change.by.as_deref(), change.why.as_deref());
        Setting {
            now_us,
            rev,
            by,
            why,
            op: op.to_owned(),
            ..Setting::default()
        }
    }

    async fn shown(&self) -> Result<Shown, Failure> {
        let shown = self.context.gate(&self.queue).await?;
        shown.ok_or_else(|| GateError::NoGate(self.queue.clone()).into())
    }

    fn check_rev(&self, change: &Change, shown: &Shown) -> Result<(), Failure> {
        match change.if_rev {
            Some(rev) if rev != shown.rev => Err(Failure::Refused(format!(
                "the gate of {} is at revision {} ({}), not {rev}; nothing was changed",
                self.queue,
                shown.rev,
                words(&shown.gate)
            ))),
            _ => Ok(()),
        }
    }

    async fn start(&self, out: &mut Output, args: &StartArgs) -> Result<(), Failure> {
        let queue = &self.queue;
        let (spec, to) = self.spec(args).await?;
        let op = operation_id();
        let mut unready = None;
        for attempt in 1..=TRIES {
            let shown = self.shown().await?;
            self.check_rev(&args.change, &shown)?;
            let live = self.context.gates.live_sessions(queue).await?;
            let known = self.context.gates.known_versions(queue).await?;
            let entry = self.store().version_entry(&to).await?;
            let (record, now_us) = match look(self.context, queue).await? {
                Some((record, now_us)) => (Some(record), now_us),
                None => (None, self.context.now_us().await?),
            };
            // Ours, if the reply was lost.
            let running = record.as_ref().filter(|record| record.op != op);
            let mut found = objections(&Facts {
                queue,
                shown: &shown,
                spec: &spec,
                to: &to,
                known: &known,
                entry: &entry,
                live: &live,
                running,
                now_us,
                again: args.again,
            });
            // Asked once, for it may take three seconds; and not where the answer changes nothing.
            if unready.is_none() && found.iter().all(|o| o.passable) {
                unready = Some(self.unready(&spec, &to, args.force).await?);
            }
            found.extend(unready.iter().flatten().cloned());
            let forced = self.refuse(&found, args.force)?;
            let setting = Setting {
                entry,
                forced,
                ..self.setting(&args.change, shown.rev, now_us, &op)
            };
            let step = rollout::start(&spec, &shown.gate.active, &to, &setting, args.change.dry_run);
            match self.step(&step).await? {
                Stepped::Yes { sealed, .. } => {
                    tell(format_args!(
                        "{}: {} -> {}",
                        queue.task_type,
                        words(&shown.gate),
                        step.text
                    ));
                    self.tell_its_end(&spec, &to).await;
                    return self.done(out, &args.change, shown.gate, &sealed).await;
                }
                Stepped::Would(sealed) => {
                    let after = Gate::parse(&sealed.gate).map_err(GateError::from)?;
                    tell(format_args!(
                        "{}: {} -> {}; {}; dry run, nothing was changed",
                        queue.task_type,
                        words(&shown.gate),
                        words(&after),
                        step.text
                    ));
                    self.tell_its_end(&spec, &to).await;
                    let fields = step
                        .record
                        .iter()
                        .map(|(k, v)| (k.as_bytes().to_vec(), v.clone().into_bytes()));
                    let record = Record::parse(&fields.collect()).map_err(|e| Failure::Other(e.to_string()))?;
                    let Some(record) = record else { return Ok(()) };
                    let mut view = RolloutView::of(queue, &record, None, now_us);
                    view.dry_run = true;
                    return out.value(&view, |out| view.text(out));
                }
                Stepped::Moved(_) | Stepped::Stale if attempt < TRIES => {}
                other => return Err(self.refused(other)),
            }
        }
        Err(self.refused(Stepped::Stale))
    }

    /// Whoever means to come to 100 % should learn now that these steps do not, or that nobody could carry them.
    async fn tell_its_end(&self, spec: &Spec, to: &Version) {
        let last = spec.share_of(spec.steps.len().saturating_sub(1));
        if last < Share::ALL {
            let task_type = &self.queue.task_type;
            tell(format_args!(
                "it stays at {last} % when that step is passed: `switchback rollout promote {task_type} --all` goes on from there"
            ));
        }
        let later = (1..spec.steps.len()).map(|n| spec.share_of(n));
        if let Some((n, short)) = self.shortage(to, later).await {
            warn(format_args!(
                "step {} of {}: {short}; start more of them before it comes there{}",
                n + 2,
                spec.steps.len(),
                if short.is_sure() { ", or it is held" } else { "" }
            ));
        }
    }

    /// The first of the shares that live workers of `to` could not carry. It is only said, so a look that fails is no failure.
    async fn shortage(&self, to: &Version, shares: impl IntoIterator<Item = Share>) -> Option<(usize, Shortage)> {
        match readiness::shortage(self.context, &self.queue, to, shares).await {
            Ok(short) => short,
            Err(failure) => {
                warn(format_args!(
                    "cannot tell whether live workers of {to} are enough: {failure}"
                ));
                None
            }
        }
    }

    /// What the rollout is to do: flags over the file over the queue's policy over the defaults.
    async fn spec(&self, args: &StartArgs) -> Result<(Spec, Version), Failure> {
        let policy = |e: &dyn std::fmt::Display| {
            Failure::Refused(format!(
                "the policy of {} for rollouts makes no sense: {e}; nothing was changed",
                self.queue
            ))
        };
        let (mut spec, mut unsound) = (Spec::default(), None);
        match &args.file {
            Some(path) => spec = read_spec(path)?,
            None => match self.store().policy().await? {
                empty if empty.is_empty() => {}
                json => {
                    spec = serde_json::from_str(&json).map_err(|e| policy(&e))?;
                    unsound = spec.validate().err();
                }
            },
        }
        if let Some(steps) = &args.steps {
            spec.steps.clone_from(&steps.0);
        }
        spec.bake = args.bake.unwrap_or(spec.bake);
        spec.min_samples = args.min_samples.unwrap_or(spec.min_samples);
        spec.watch = args.watch.unwrap_or(spec.watch);
        spec.inflight = args.inflight.unwrap_or(spec.inflight);
        if let Some(points) = args.margin {
            spec.guard.failure_margin = points / 100.0;
        }
        let to = args.to.clone().or_else(|| spec.to.clone());
        let to = to.ok_or_else(|| Failure::Usage("which version? Name it with --to, or in the file".to_owned()))?;
        // What was asked for cannot be, whatever Redis says: a mistake of the command line, unless the policy was one already.
        spec.validate().map_err(|e| match unsound {
            Some(unsound) => policy(&unsound),
            None => Failure::Usage(format!("{e}; nothing was changed")),
        })?;
        Ok((spec, to))
    }

    /// What speaks against giving `to` the share of the first step. The label and its workers were judged before.
    async fn unready(&self, spec: &Spec, to: &Version, force: bool) -> Result<Vec<Objection>, Failure> {
        let passable = |text: String| Objection { text, passable: true };
        let found = match readiness::objections(self.context, &self.queue, to, part(spec.share_of(0))).await {
            // Who insists is not stopped by a look that failed.
            Err(failure) if force && is_passable(&failure) => {
                return Ok(vec![passable(format!("cannot tell whether {to} is ready: {failure}"))]);
            }
            other => other?,
        };
        let judged = ["unknown_version", "retired", "rolled_back", "no_worker"];
        let (blocks, warns): (Vec<_>, Vec<_>) = found
            .into_iter()
            .filter(|o| !judged.contains(&o.code))
            .partition(|o| o.level == Level::Blocks);
        for said in warns {
            warn(plain(&said.text));
        }
        Ok(blocks.into_iter().map(|o| passable(plain(&o.text))).collect())
    }

    /// Refuses unless nothing stands; else what was passed over.
    fn refuse(&self, found: &[Objection], force: bool) -> Result<String, Failure> {
        let stands = |o: &&Objection| !(o.passable && force);
        let reasons: Vec<&str> = found.iter().filter(stands).map(|o| o.text.as_str()).collect();
        for passed in found.iter().filter(|o| !stands(o)) {
            warn(format_args!("{}; going on", passed.text));
        }
        if reasons.is_empty() {
            let passed: Vec<&str> = found.iter().map(|o| o.text.as_str()).collect();
            return Ok(clip(&passed.join("; "), MAX_FORCED_BYTES).to_owned());
        }
        let way = if found.iter().filter(stands).all(|o| o.passable) {
            "; --force does it all the same"
        } else {
            ""
        };
        Err(Failure::Refused(format!("{}: {}{way}", self.queue, reasons.join("; "))))
    }

    fn refused(&self, stepped: Stepped) -> Failure {
        let queue = &self.queue;
        match stepped {
            Stepped::Refused { field, reason } => {
                Failure::Refused(format!("{queue}: {field}={}; nothing was changed", plain(&reason)))
            }
            Stepped::Running(_) => Failure::Refused(format!(
                "{queue}: another rollout has just begun; look with `switchback rollout status {}`",
                queue.task_type
            )),
            Stepped::Unsealed => GateError::NoGate(queue.clone()).into(),
            _ => Failure::Refused(format!(
                "the gate or the rollout of {queue} keeps changing; nothing was changed"
            )),
        }
    }

    /// One resend when the reply was lost: the operation id makes it harmless (P9).
    async fn step(&self, step: &Step) -> Result<Stepped, Failure> {
        match self.store().step(step).await {
            Err(e) if e.is_outcome_unknown() => {
                tell(format_args!("{e}; asking again"));
                self.store()
                    .step(step)
                    .await
                    .map_err(|source| Failure::Unknown { source })
            }
            other => Ok(other?),
        }
    }

    /// A step that a person takes on the rollout that runs.
    async fn turn(
        &self,
        out: &mut Output,
        change: &Change,
        done: &str,
        make: impl Fn(&Record, &Gate, &Setting) -> Option<Step>,
    ) -> Result<(), Failure> {
        let op = operation_id();
        for _ in 0..TRIES {
            let shown = self.shown().await?;
            self.check_rev(change, &shown)?;
            let Some((mut record, now_us)) = look(self.context, &self.queue).await? else {
                return Err(Failure::NotFound(format!("{} has no rollout", self.queue)));
            };
            record = self.observed(record, shown.gate.paused, now_us).await?;
            if let Some(otherwise) = self.otherwise(&record, &shown.gate) {
                if done != "aborted" {
                    return Err(Failure::Refused(format!(
                        "{otherwise}: a worker says so within a second, and without one `switchback rollout abort {}` does",
                        self.queue.task_type
                    )));
                }
                tell(format_args!("{otherwise}; the gate stays as it is"));
            }
            let setting = self.setting(change, shown.rev, now_us, &op);
            let Some(step) = make(&record, &shown.gate, &setting) else {
                return Err(self.cannot_be(done, &record, &shown));
            };
            if change.dry_run {
                tell(format_args!(
                    "{}: {}; dry run, nothing was changed",
                    self.queue.task_type, step.text
                ));
                return self.status(out, true).await;
            }
            match self.step(&step).await? {
                Stepped::Yes { sealed, .. } => {
                    tell(format_args!("{}: {}", self.queue.task_type, step.text));
                    return self.done(out, change, shown.gate, &sealed).await;
                }
                // Whoever drives writes every second.
                Stepped::Moved(_) | Stepped::Stale => {}
                other => return Err(self.refused(other)),
            }
        }
        Err(self.refused(Stepped::Stale))
    }

    /// That the gate is not as the rollout left it, and nobody has ended it yet.
    fn otherwise(&self, record: &Record, gate: &Gate) -> Option<String> {
        (record.status.is_live() && !record.agrees_with(gate)).then(|| {
            format!(
                "the gate of {} was set otherwise ({}), which ends the rollout of {}",
                self.queue,
                words(gate),
                record.to
            )
        })
    }

    fn cannot_be(&self, done: &str, record: &Record, shown: &Shown) -> Failure {
        let (to, queue, task_type) = (&record.to, &self.queue, &self.queue.task_type);
        let status = view::status(record);
        Failure::Refused(match record.status.is_live() {
            true => format!("the rollout of {to} on {queue} is {status}: it cannot be {done}"),
            // Whoever wants the version gone, or on, must learn that nothing of it is up to the rollout any more.
            false => format!(
                "the rollout of {to} on {queue} is over ({status}): it cannot be {done}. The gate is {}: `switchback gate rollback \
                 {task_type}` goes back, `switchback rollout start {task_type} --to VERSION` begins another",
                words(&shown.gate)
            ),
        })
    }

    /// Ends what nobody can read.
    async fn bury(&self, change: &Change) -> Result<(), Failure> {
        let op = operation_id();
        for _ in 0..TRIES {
            let shown = self.shown().await?;
            self.check_rev(change, &shown)?;
            let (fields, now_us) = self.store().read().await?;
            let step = rollout::bury(&fields, &self.setting(change, shown.rev, now_us, &op));
            let told = || tell(format_args!("{}: {}", self.queue.task_type, step.text));
            if change.dry_run {
                told();
                return Ok(());
            }
            match self.step(&step).await? {
                Stepped::Yes { .. } => {
                    told();
                    return Ok(());
                }
                Stepped::Moved(_) | Stepped::Stale => {}
                other => return Err(self.refused(other)),
            }
        }
        Err(self.refused(Stepped::Stale))
    }

    /// The record with what was counted until now.
    async fn observed(&self, mut record: Record, gate_paused: bool, now_us: u64) -> Result<Record, Failure> {
        if record.status.is_live() {
            let (from, to) = record.blocks(now_us);
            let blocks = self.store().blocks(from, to).await?;
            let blocks: Vec<_> = blocks
                .into_iter()
                .map(|(n, f)| (n, counts(&f, &record.from, &record.to)))
                .collect();
            record.observe(now_us, gate_paused, &blocks);
        }
        Ok(record)
    }

    async fn status(&self, out: &mut Output, dry_run: bool) -> Result<(), Failure> {
        let Some((record, now_us)) = look(self.context, &self.queue).await? else {
            self.context.require(&self.queue).await?;
            return Err(Failure::NotFound(format!(
                "{} has no rollout; begin one with `switchback rollout start {} --to VERSION`",
                self.queue, self.queue.task_type
            )));
        };
        let gate = self.context.gate(&self.queue).await?.map(|shown| shown.gate);
        let paused = gate.as_ref().is_some_and(|gate| gate.paused);
        let record = self.observed(record, paused, now_us).await?;
        let driver = self.store().driver().await?.map(|session| session.to_string());
        let mut view = RolloutView::of(&self.queue, &record, driver, now_us);
        view.dry_run = dry_run;
        view.next = view::next(&record, &self.queue.task_type, gate.as_ref());
        if matches!(record.status, Status::Running | Status::Paused | Status::Held) {
            // That of the step it is at, if even that is too much.
            let shares = [record.share(), record.spec.share_of(record.step + 1)];
            let short = self.shortage(&record.to, shares).await;
            view.short = short.map(|(_, short)| ShortView::of(&short));
        }
        if let Some(otherwise) = gate.as_ref().and_then(|gate| self.otherwise(&record, gate)) {
            warn(format_args!(
                "{otherwise}: a worker says so within a second, and without one `switchback rollout abort {}` does",
                self.queue.task_type
            ));
        }
        if paused && record.status.is_live() {
            let (queue, task_type) = (&self.queue, &self.queue.task_type);
            warn(format_args!(
                "{queue} is paused: nothing starts, and no time counts, until `switchback gate resume {task_type}`"
            ));
        }
        out.value(&view, |out| view.text(out))
    }

    /// After a step: how it stands now, `--wait`, `--drain`. It is committed, whatever comes of looking.
    async fn done(&self, out: &mut Output, change: &Change, before: Gate, sealed: &Sealed) -> Result<(), Failure> {
        let shown = committed(self.status(out, false).await, sealed.rev);
        let answer = Answer {
            gate: Gate::parse(&sealed.gate).map_err(GateError::from)?,
            rev: sealed.rev,
            changed: true,
        };
        change::wait(self.context, &self.queue, before, &answer, change).await?;
        shown
    }
}

/// Reads a rollout from a TOML or YAML file.
fn read_spec(path: &Path) -> Result<Spec, Failure> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if !matches!(extension, "yaml" | "yml") {
        return Ok(read_toml(path)?);
    }
    let unreadable = |e: &dyn std::fmt::Display| Failure::Usage(format!("{}: {e}", path.display()));
    let length = std::fs::metadata(path).map_err(|e| unreadable(&e))?.len();
    if length > MAX_FILE_BYTES {
        return Err(unreadable(&format!("{length} bytes are too many for a rollout")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| unreadable(&e))?;
    serde_saphyr::from_str(&text).map_err(|e| unreadable(&plain(&e.to_string())))
}
