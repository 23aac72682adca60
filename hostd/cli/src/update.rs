//! `grid update`: another version of something that is there.
//!
//! A plan says all of a deployment again; this changes one thing about one workload, and leaves the rest
//! as its node has it. What a type of workload can't change while it exists is refused before the
//! contract is touched.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use hostd_grid::secret::SecretText;
use hostd_grid::workload::WorkloadResult;
use hostd_grid::{Deployment, Name, Workload, WorkloadData};

use crate::apply::{self, deployment};
use crate::build::Current;
use crate::exit::{NotFound, Usage};
use crate::look::node_of;
use crate::plan::Label;
use crate::session::Session;
use crate::size::Size;

/// Change a deployment: its size, its password, who may read it
#[derive(clap::Args)]
pub(crate) struct UpdateArguments {
    /// The contract's number
    contract: u64,
    /// Which of its workloads, if several could be meant
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// How much fits into it from now on; it can't shrink
    #[arg(long, value_name = "SIZE")]
    size: Option<Size>,
    /// File with what clients of a zdb authenticate with from now on
    #[arg(long, value_name = "PATH")]
    password_file: Option<PathBuf>,
    /// Whether clients of a zdb may read without the password
    #[arg(long, value_name = "true|false")]
    public: Option<bool>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// What is to be different.
#[derive(Default)]
struct Wish {
    size: Option<u64>,
    password: Option<SecretText>,
    public: Option<bool>,
}

pub(crate) async fn run(
    session: &Session,
    arguments: UpdateArguments,
    json: bool,
) -> anyhow::Result<()> {
    let UpdateArguments { contract, name, size, password_file, public, dry_run } = arguments;
    let password = match password_file {
        Some(path) => Some(SecretText::new(crate::read_password(&path)?)),
        None => None,
    };
    let wish = Wish { size: size.map(|size| size.0), password, public };
    if wish.size.is_none() && wish.password.is_none() && wish.public.is_none() {
        let text = "say what is to be different: --size, --password-file or --public";
        return Err(Usage(text.to_owned()).into());
    }
    let node = node_of(session, contract).await?;
    let bus = session.bus().await?;
    let found = deployment(&bus, node, contract).await?;
    let found = found
        .ok_or_else(|| NotFound(format!("node {node} has no deployment of contract {contract}")))?;
    let current = found.deployment();
    let name = name.map(Name::new);
    let (updated, name) = changed(current, name.as_ref(), &wish)?;
    let title = match serde_json::from_str::<Label>(&current.metadata) {
        Ok(label) => format!("{} {} on node {node}", label.kind, label.name),
        Err(_) => format!("contract {contract} on node {node}"),
    };
    let version = updated.version;
    if !dry_run {
        let names = std::slice::from_ref(&name);
        let done = apply::update(session, &bus, node, &title, updated, names).await;
        done.with_context(|| title.clone())?;
    }
    if json {
        let shown = serde_json::json!({
            "contract_id": contract, "node": node, "name": name.as_str(), "version": version,
        });
        println!("{}", serde_json::to_string_pretty(&shown)?);
    } else {
        let done = if dry_run { "would update" } else { "updated" };
        println!("{done}: {title}, {name}, version {version}");
    }
    Ok(())
}

/// The next version of a deployment, and the workload that is different in it.
fn changed(
    current: &Current,
    wanted: Option<&Name>,
    wish: &Wish,
) -> anyhow::Result<(Deployment, Name)> {
    let version = current.version.checked_add(1).context("there is no next version")?;
    let mut workloads = Vec::new();
    for workload in &current.workloads {
        let data = workload.data.clone().map_err(anyhow::Error::new);
        let data = data.with_context(|| format!("{} can't be read", workload.name))?;
        workloads.push(Workload {
            version: workload.version,
            name: workload.name.clone(),
            data,
            metadata: workload.metadata.clone(),
            description: workload.description.clone(),
            result: WorkloadResult::default(),
        });
    }
    let could_be = |workload: &&mut Workload| match wanted {
        Some(name) => workload.name == *name,
        None => wish.is_for(&workload.data),
    };
    let mut meant = workloads.iter_mut().filter(could_be);
    let workload = meant.next().ok_or_else(|| match wanted {
        Some(name) => NotFound(format!("there is no workload {name} in it")),
        None => NotFound("there is no workload in it that this could be about".to_owned()),
    })?;
    if let Some(other) = meant.next() {
        let (one, other) = (&workload.name, &other.name);
        return Err(Usage(format!("{one} or {other}? say which with --name")).into());
    }
    wish.apply(workload)?;
    workload.version = version;
    let name = workload.name.clone();
    let updated = Deployment {
        version,
        twin_id: current.twin_id,
        contract_id: current.contract_id,
        metadata: current.metadata.clone(),
        description: current.description.clone(),
        expiration: current.expiration,
        signature_requirement: hostd_grid::deployment::SignatureRequirement {
            signatures: Vec::new(),
            ..current.signature_requirement.clone()
        },
        workloads,
    };
    updated.validate()?;
    Ok((updated, name))
}

impl Wish {
    /// Whether a workload has everything that is to be different.
    fn is_for(&self, data: &WorkloadData) -> bool {
        match data {
            WorkloadData::Zdb(_) => true,
            WorkloadData::ZMount(_) | WorkloadData::Volume(_) => {
                self.password.is_none() && self.public.is_none()
            }
            _ => false,
        }
    }

    fn apply(&self, workload: &mut Workload) -> anyhow::Result<()> {
        let name = workload.name.clone();
        if !self.is_for(&workload.data) {
            bail!("{} {name} can't be changed like that", workload.data.kind());
        }
        let grown = |old: u64| match self.size {
            Some(new) => {
                ensure!(new >= old, "{name} has {}, and can't shrink to {}", Size(old), Size(new));
                Ok(new)
            }
            None => Ok(old),
        };
        match &mut workload.data {
            WorkloadData::ZMount(disk) => disk.size = grown(disk.size)?,
            WorkloadData::Volume(volume) => volume.size = grown(volume.size)?,
            WorkloadData::Zdb(zdb) => {
                zdb.size = grown(zdb.size)?;
                zdb.public = self.public.unwrap_or(zdb.public);
                if let Some(password) = &self.password {
                    zdb.password = password.clone();
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use hostd_grid::SignedDeployment;

    use super::*;

    fn current(workloads: &str) -> Current {
        let text = format!(
            r#"{{"version": 3, "twin_id": 7, "contract_id": 5, "metadata": "m",
                "signature_requirement": {{"weight_required": 1,
                    "requests": [{{"twin_id": 7, "required": true, "weight": 1}}],
                    "signatures": [{{"twin_id": 7, "signature": "00", "signature_type": "x"}}]}},
                "workloads": [{workloads}]}}"#
        );
        SignedDeployment::read(text.into_bytes()).unwrap().deployment().clone()
    }

    const DISKS: &str = r#"
        {"version": 0, "name": "a", "type": "zmount", "data": {"size": 1073741824}},
        {"version": 2, "name": "b", "type": "zmount", "data": {"size": 1073741824}}"#;
    const ZDB: &str = r#"{"version": 0, "name": "db", "type": "zdb",
        "data": {"size": 1073741824, "mode": "user", "password": "old", "public": true}}"#;

    fn refusal(current: &Current, name: Option<&str>, wish: &Wish) -> String {
        let name = name.map(Name::new);
        changed(current, name.as_ref(), wish).unwrap_err().to_string()
    }

    #[test]
    fn one_workload_gets_the_next_version() {
        let wish = Wish { size: Some(2 << 30), ..Wish::default() };
        let (updated, name) = changed(&current(DISKS), Some(&"b".into()), &wish).unwrap();
        assert_eq!((updated.version, updated.contract_id.0, name.as_str()), (4, 5, "b"));
        let versions: Vec<_> = updated.workloads.iter().map(|workload| workload.version).collect();
        assert_eq!(versions, [0, 4]);
        let WorkloadData::ZMount(disk) = &updated.workloads[1].data else { panic!() };
        assert_eq!(disk.size, 2 << 30);
        assert!(updated.signature_requirement.signatures.is_empty());
        assert_eq!(updated.signature_requirement.requests.len(), 1);
    }

    #[test]
    fn what_is_not_said_stays() {
        let password = Some(SecretText::new("new"));
        let (updated, _) =
            changed(&current(ZDB), None, &Wish { password, ..Wish::default() }).unwrap();
        let WorkloadData::Zdb(zdb) = &updated.workloads[0].data else { panic!() };
        assert_eq!((zdb.size, zdb.public, zdb.password.expose()), (1 << 30, true, "new"));
    }

    #[test]
    fn what_can_not_be_is_said() {
        let grow = Wish { size: Some(2 << 30), ..Wish::default() };
        let shrink = Wish { size: Some(1), ..Wish::default() };
        let public = Wish { public: Some(true), ..Wish::default() };
        assert_eq!(refusal(&current(DISKS), None, &grow), "a or b? say which with --name");
        let text = refusal(&current(DISKS), Some("c"), &grow);
        assert_eq!(text, "there is no workload c in it");
        assert_eq!(refusal(&current(ZDB), None, &shrink), "db has 1G, and can't shrink to 1");
        let text = refusal(&current(DISKS), Some("a"), &public);
        assert_eq!(text, "zmount a can't be changed like that");
    }
}
