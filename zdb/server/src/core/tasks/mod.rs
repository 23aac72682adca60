//! What may take long, done beside the loop: making, changing, emptying and removing namespaces.
//!
//! Such a command needs syncs of files and folders. Another thread runs it, and has the namespace
//! meanwhile; clients of other namespaces are served as if nothing happened:
//!
//! ```text
//!  handler ── begin ──> Task::run (another thread, owns the namespace) ──> finish_task ── answer ──> asker
//!                          namespace: away                                     │
//!  others who need it: postponed ────────────────── woken, ask again <─────────┘
//! ```
//!
//! The asker's connection stands still until its answer is there, so replies keep their order. Another
//! client's request that needs the namespace stays unread in its buffer until the namespace is back.
//! Replies to earlier writes wait as they did, and a sync that ends meanwhile is noted when it can be.
//! A task begins only when the engine is not changing a segment beside the loop itself.

use std::fmt;
use std::time::Instant;

use zdb_engine::{CommitFailed, Error, Name, Namespace, SeqNo};

use super::{Absence, ClientId, Core, Entry, NamespaceId};
use crate::commands::CommandId;
use crate::refusal::{Outcome, Refusal, common, display_chain};

/// What a task does, on its thread.
type Work = Box<dyn FnOnce() -> Worked + Send>;

/// Something that blocks and is about one namespace. Another thread runs it.
pub struct Task {
    namespace: NamespaceId,
    asker: Option<Asker>,
    event: Option<&'static str>,
    work: Work,
}

/// A task that was run.
#[derive(Debug)]
pub struct TaskDone {
    namespace: NamespaceId,
    asker: Option<Asker>,
    event: Option<&'static str>,
    worked: Worked,
}

/// Who waits for a task's answer, with what and since when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    pub(crate) client: ClientId,
    pub(crate) command: Option<CommandId>,
    pub(crate) begin: Instant,
}

/// What a task gives back.
#[derive(Debug)]
pub(crate) struct Worked {
    pub(crate) namespace: Result<Namespace, Loss>,
    pub(crate) answer: Result<Answer, Refusal>,
    /// Writes that were lost on the way.
    pub(crate) failed: Option<CommitFailed>,
}

/// Why there is no namespace after a task.
#[derive(Debug)]
pub(crate) enum Loss {
    /// It was removed, or could not be made.
    Removed,
    /// It can't be served, and says why.
    Unavailable(String),
}

/// What a client is told when its task is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Ok,
    Integer(u64),
}

/// An answer for a client whose connection waits for it.
pub type Answered = (ClientId, Reply);

/// What to write as its reply.
#[derive(Debug)]
pub struct Reply(pub(crate) Result<Answer, Refusal>);

impl Task {
    /// Runs it. Blocks.
    #[must_use]
    pub fn run(self) -> TaskDone {
        let Self { namespace, asker, event, work } = self;
        TaskDone { namespace, asker, event, worked: work() }
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Task").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Worked {
    /// The namespace is as good as before, whatever came of the task.
    pub(crate) fn kept(namespace: Namespace, answer: Result<Answer, Refusal>) -> Self {
        Self { namespace: Ok(namespace), answer, failed: None }
    }

    /// Something was done to it, or refused; `otherwise` is for what only the disk can say.
    pub(crate) fn done<T>(
        namespace: Namespace,
        result: Result<T, Error>,
        otherwise: &'static str,
    ) -> Self {
        let answer = result.map(|_| Answer::Ok).map_err(|error| common(&error, otherwise));
        Self::kept(namespace, answer)
    }

    /// A namespace that was to be made or loaded.
    pub(crate) fn made(made: Result<Namespace, Error>, otherwise: &'static str) -> Self {
        match made {
            Ok(namespace) => Self::kept(namespace, Ok(Answer::Ok)),
            Err(error) => {
                let answer = Err(common(&error, otherwise));
                Self { namespace: Err(Loss::Removed), answer, failed: None }
            }
        }
    }
}

impl Core {
    /// Has something done to a namespace that is there.
    pub(crate) fn begin(
        &mut self,
        id: NamespaceId,
        asker: Option<Asker>,
        event: Option<&'static str>,
        work: impl FnOnce(Namespace) -> Worked + Send + 'static,
    ) -> Outcome {
        let entry = self.namespaces.get_mut(id).ok_or(crate::commands::DETACHED)?;
        let namespace = entry.loaded()?;
        if namespace.is_busy() {
            return Err(Refusal::postponed(id));
        }
        let away = Err(Absence::away(id, namespace));
        let Ok(namespace) = std::mem::replace(&mut entry.namespace, away) else { return Ok(()) };
        self.push_task(id, asker, event, Box::new(move || work(namespace)));
        Ok(())
    }

    /// Has something done to a namespace whether it can be served or not.
    pub(crate) fn begin_anyhow(
        &mut self,
        id: NamespaceId,
        asker: Option<Asker>,
        event: Option<&'static str>,
        work: impl FnOnce(Option<Namespace>) -> Worked + Send + 'static,
    ) -> Outcome {
        let entry = self.namespaces.get_mut(id).ok_or(crate::commands::DETACHED)?;
        let away = Err(match &entry.namespace {
            Ok(namespace) if namespace.is_busy() => return Err(Refusal::postponed(id)),
            Ok(namespace) => Absence::away(id, namespace),
            Err(Absence::Away { .. }) => return Err(Refusal::postponed(id)),
            Err(Absence::Unavailable(_)) => {
                Absence::Away { id, acknowledged: SeqNo(u64::MAX), stats: None }
            }
        });
        let namespace = std::mem::replace(&mut entry.namespace, away).ok();
        self.push_task(id, asker, event, Box::new(move || work(namespace)));
        Ok(())
    }

    /// Has a namespace made, whose name is new. It is away until it is made.
    pub(crate) fn begin_making(
        &mut self,
        name: Name,
        asker: Option<Asker>,
        work: impl FnOnce() -> Worked + Send + 'static,
    ) {
        let id = self.namespaces.insert(Entry::coming(name));
        self.push_task(id, asker, Some("namespace-created"), Box::new(work));
    }

    fn push_task(
        &mut self,
        namespace: NamespaceId,
        asker: Option<Asker>,
        event: Option<&'static str>,
        work: Work,
    ) {
        self.tasks.push(Task { namespace, asker, event, work });
    }

    /// Tasks to be run by another thread. There are never more than namespaces.
    pub fn take_tasks(&mut self) -> impl Iterator<Item = Task> {
        self.tasks.drain(..)
    }

    /// Takes a task's result: the namespace is back, or gone.
    pub fn finish_task(&mut self, done: TaskDone) {
        let TaskDone { namespace: id, asker, event, worked } = done;
        let Some(entry) = self.namespaces.get_mut(id) else { return };
        let name = entry.name.clone();
        self.woken.append(&mut entry.waiting);
        entry.is_coming = false;
        match worked.namespace {
            Ok(namespace) => self.welcome(id, namespace),
            Err(Loss::Removed) => self.see_off(id),
            Err(Loss::Unavailable(reason)) => {
                tracing::error!(namespace = %name, reason, "not served");
                entry.namespace = Err(Absence::Unavailable(reason));
            }
        }
        if let Some(failed) = worked.failed {
            self.note(id, Err(failed));
        }
        match (&worked.answer, event) {
            (Ok(_), Some(event)) => self.announce(event, name.as_bytes()),
            (Err(refusal), None) if asker.is_none() => {
                tracing::warn!(namespace = %name, error = %refusal.text, "upkeep failed");
            }
            _ => {}
        }
        if let Some(Asker { client, command, begin }) = asker {
            self.metrics.note(command, begin.elapsed(), worked.answer.as_ref().err());
            self.answers.push((client, Reply(worked.answer)));
        }
    }

    /// A namespace is back: what had to wait for it is done.
    fn welcome(&mut self, id: NamespaceId, namespace: Namespace) {
        let Some(entry) = self.namespaces.get_mut(id) else { return };
        entry.namespace = Ok(namespace);
        let late = std::mem::take(&mut entry.late_syncs);
        // The batch that was running when it went is written now.
        self.touch(id);
        self.hold_for_followers(id);
        late.into_iter().for_each(|synced| self.synced(synced));
        self.announce_rotation(id);
    }

    /// A namespace is gone: those who were there hear of it.
    fn see_off(&mut self, id: NamespaceId) {
        let Some(entry) = self.namespaces.remove(id) else { return };
        for watcher in &entry.watchers {
            self.stop_waiting(watcher.client);
        }
        for follower in &entry.followers {
            let mut message = Vec::new();
            zdb_resp::write::error(&mut message, crate::commands::DETACHED.text.as_bytes());
            self.messages.push((follower.client, message));
        }
    }

    /// Has a client wait for a namespace that is away.
    pub(crate) fn postpone(&mut self, client: ClientId, id: NamespaceId) {
        match self.namespaces.get_mut(id) {
            Some(entry) => entry.waiting.push(client),
            None => self.woken.push(client),
        }
    }

    /// Answers for clients that wait for one, since the last call.
    pub fn take_answers(&mut self) -> Vec<Answered> {
        std::mem::take(&mut self.answers)
    }

    /// Clients whose requests were postponed and can be tried again, since the last call.
    pub fn take_woken(&mut self) -> Vec<ClientId> {
        std::mem::take(&mut self.woken)
    }

    /// Ends a namespace well and loads it again, whatever became of it before.
    pub(crate) fn begin_reloading(&mut self, id: NamespaceId, asker: Asker) -> Outcome {
        let (engine, policy) = (self.engine.clone(), self.policy.clone());
        let entry = self.namespaces.get_mut(id).ok_or(crate::commands::DETACHED)?;
        let name = entry.name.clone();
        let work = move |before: Option<Namespace>| {
            let failed = before.and_then(|namespace| namespace.close().err());
            match super::open::load(&engine, &policy, &name) {
                Ok(namespace) => Worked { failed, ..Worked::kept(namespace, Ok(Answer::Ok)) },
                Err(error) => Worked {
                    namespace: Err(Loss::Unavailable(crate::commands::unavailable(&error))),
                    answer: Err(common(&error, "Could not reload this namespace")),
                    failed,
                },
            }
        };
        self.begin_anyhow(id, Some(asker), Some("namespace-reloaded"), work)?;
        if let Some(entry) = self.namespaces.get_mut(id) {
            // It will know nothing of a sync that is under way.
            entry.epoch = entry.epoch.wrapping_add(1);
        }
        Ok(())
    }

    /// Removes a namespace and all it holds.
    pub(crate) fn begin_removing(&mut self, id: NamespaceId, asker: Asker) -> Outcome {
        const FAILED: &str = "Could not delete this namespace";
        let (engine, policy) = (self.engine.clone(), self.policy.clone());
        let entry = self.namespaces.get_mut(id).ok_or(FAILED)?;
        let name = entry.name.clone();
        let work = move |before: Option<Namespace>| {
            // Loaded namespaces can't be removed.
            drop(before);
            let Err(error) = engine.remove(&name) else {
                let answer = Ok(Answer::Ok);
                return Worked { namespace: Err(Loss::Removed), answer, failed: None };
            };
            let error = display_chain(&error);
            tracing::error!(namespace = %name, error, "not removed");
            let loaded = super::open::load(&engine, &policy, &name);
            let namespace = loaded.map_err(|e| Loss::Unavailable(crate::commands::unavailable(&e)));
            Worked { namespace, answer: Err(FAILED.into()), failed: None }
        };
        self.begin_anyhow(id, Some(asker), Some("namespace-deleted"), work)
    }
}

#[cfg(test)]
mod tests;
