//! Running statements: variables, files, and what the script would have GRUB boot.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::lex::{Piece, Word};
use super::parse::{Block, Statement, parse};
use super::{GrubError, condition};
use crate::config::{INITRD_COUNT_MAX, OFFER_COUNT_MAX, Offer, bls};
use crate::filesystem::{FileError, Node};
use crate::volumes::{Place, Volumes};

/// Most commands that a script runs, those of loops and sourced files included.
const STEP_COUNT_MAX: usize = 100_000;
/// Deepest nesting of files, functions and submenus.
const DEPTH_MAX: usize = 16;
/// Bytes of a variable or word.
const VALUE_SIZE_MAX: usize = 64 << 10;
/// Most variables.
const VARIABLE_COUNT_MAX: usize = 4096;
/// Most words of a command.
const WORD_COUNT_MAX: usize = 4096;
/// What GRUB says of itself, which scripts ask for (GNU GRUB manual, 16.1). It is the GRUB of a BIOS: the
/// one that offers what any machine can boot.
const OWN_VARIABLES: [(&str, &str); 10] = [
    ("grub_platform", "pc"),
    ("grub_cpu", "i386"),
    ("feature_menuentry_id", "y"),
    ("feature_menuentry_options", "y"),
    ("feature_timeout_style", "y"),
    ("feature_all_video_module", "y"),
    ("feature_default_font_path", "y"),
    ("feature_platform_search_hint", "y"),
    ("feature_nativedisk_cmd", "y"),
    ("feature_200_final", "y"),
];
/// Commands that fail: there is no key pressed, no font, no picture, no terminal.
const FAILING: [&str; 8] =
    ["false", "keystatus", "loadfont", "background_image", "serial", "regexp", "smbios", "hwmatch"];
/// The variable that says what is booted once. Nobody would clear it.
const ONCE: &str = "next_entry";

/// An entry of the menu.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) title: String,
    pub(super) id: String,
    pub(super) content: Content,
}

/// What an entry does.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Statements to be run.
    Block { body: Block, is_submenu: bool, arguments: Vec<String> },
    /// What is known already.
    Offer(Offer),
}

/// How a block ended.
enum Flow {
    /// By its end; whether its last command succeeded.
    Next(bool),
    Break,
    Continue,
    Return(bool),
}

/// What a script has done so far.
pub(super) struct Machine<'a> {
    volumes: &'a Volumes,
    variables: BTreeMap<String, String>,
    functions: BTreeMap<String, Block>,
    arguments: Vec<String>,
    /// The menu.
    pub(super) entries: Vec<Entry>,
    /// What an entry loads.
    loaded: Offer,
    steps: usize,
    depth: usize,
}

impl<'a> Machine<'a> {
    /// As GRUB starts with the script at a place.
    pub(super) fn new(volumes: &'a Volumes, script: &Place) -> Self {
        let root = volumes.name(script.volume);
        let folder = script.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let own = OWN_VARIABLES.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut variables = BTreeMap::from(own);
        for name in ["prefix", "config_directory"] {
            variables.insert(name.to_owned(), format!("({root}){folder}"));
        }
        variables.insert("root".to_owned(), root);
        Self {
            volumes,
            variables,
            functions: BTreeMap::new(),
            arguments: Vec::new(),
            entries: Vec::new(),
            loaded: Offer::default(),
            steps: 0,
            depth: 0,
        }
    }

    /// Runs a script.
    pub(super) fn run(&mut self, script: &Block) -> Result<(), GrubError> {
        self.block(script).map(drop)
    }

    /// The entries that a submenu has.
    pub(super) fn submenu(&mut self, entry: &Entry) -> Result<Vec<Entry>, GrubError> {
        let Content::Block { body, is_submenu: true, arguments } = &entry.content else {
            return Ok(Vec::new());
        };
        let outer = std::mem::take(&mut self.entries);
        self.with_arguments(arguments.clone(), body)?;
        Ok(std::mem::replace(&mut self.entries, outer))
    }

    /// What an entry loads.
    pub(super) fn load(&mut self, entry: &Entry) -> Result<Offer, GrubError> {
        match &entry.content {
            Content::Offer(offer) => Ok(offer.clone()),
            Content::Block { body, arguments, .. } => {
                let root = self.variables.get("root").cloned();
                self.loaded = Offer { title: entry.title.clone(), ..Offer::default() };
                self.set("chosen", entry.title.clone())?;
                self.with_arguments(arguments.clone(), body)?;
                // Another entry is tried from where this one began.
                self.variables.extend(root.map(|root| ("root".to_owned(), root)));
                Ok(std::mem::take(&mut self.loaded))
            }
        }
    }

    pub(super) fn variable(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    /// What is at a path as scripts write it: `(hd0,gpt1)/x`, or `/x` on the root.
    pub(super) fn look(&self, path: &str) -> Result<Option<Node>, FileError> {
        let Some(place) = self.place(path) else { return Ok(None) };
        Ok(self.volumes.look(&place)?.map(|(_, node)| node))
    }

    fn place(&self, path: &str) -> Option<Place> {
        let (device, path) = match path.strip_prefix('(') {
            Some(rest) => rest.split_once(')')?,
            None => (self.variable("root"), path),
        };
        Some(Place { volume: self.volumes.by_name(device)?, path: path.to_owned() })
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), GrubError> {
        if value.len() > VALUE_SIZE_MAX {
            return Err(GrubError::TooMuch("sets a variable of more than 64 KiB"));
        }
        if self.variables.len() >= VARIABLE_COUNT_MAX && !self.variables.contains_key(name) {
            return Err(GrubError::TooMuch("sets more than 4096 variables"));
        }
        self.variables.insert(name.to_owned(), value);
        Ok(())
    }

    fn with_arguments(&mut self, arguments: Vec<String>, body: &Block) -> Result<bool, GrubError> {
        let outer = std::mem::replace(&mut self.arguments, arguments);
        let flow = self.deeper(|machine| machine.block(body))?;
        self.arguments = outer;
        Ok(!matches!(flow, Flow::Next(false) | Flow::Return(false)))
    }

    fn deeper<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, GrubError>,
    ) -> Result<T, GrubError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(GrubError::TooMuch("goes more than 16 files, functions or menus deep"));
        }
        let done = work(self)?;
        self.depth -= 1;
        Ok(done)
    }

    fn block(&mut self, block: &Block) -> Result<Flow, GrubError> {
        let mut last = true;
        for statement in block.iter() {
            match self.statement(statement)? {
                Flow::Next(done) => last = done,
                flow => return Ok(flow),
            }
        }
        Ok(Flow::Next(last))
    }

    fn step(&mut self) -> Result<(), GrubError> {
        self.steps += 1;
        if self.steps > STEP_COUNT_MAX {
            return Err(GrubError::TooMuch("runs more than 100000 commands"));
        }
        Ok(())
    }

    fn statement(&mut self, statement: &Statement) -> Result<Flow, GrubError> {
        self.step()?;
        match statement {
            Statement::Command { words, body } => self.command(words, body.as_ref()),
            Statement::Function { name, body } => {
                if self.functions.len() >= VARIABLE_COUNT_MAX {
                    return Err(GrubError::TooMuch("has more than 4096 functions"));
                }
                self.functions.insert(name.clone(), Rc::clone(body));
                Ok(Flow::Next(true))
            }
            Statement::If { arms, otherwise } => {
                for (condition, body) in arms {
                    match self.block(condition)? {
                        Flow::Next(true) => return self.block(body),
                        Flow::Next(false) => {}
                        flow => return Ok(flow),
                    }
                }
                self.block(otherwise)
            }
            Statement::While { condition, body, is_until } => loop {
                self.step()?;
                match self.block(condition)? {
                    Flow::Next(holds) if holds != *is_until => {}
                    Flow::Next(_) => return Ok(Flow::Next(true)),
                    flow => return Ok(flow),
                }
                match self.block(body)? {
                    Flow::Break => return Ok(Flow::Next(true)),
                    flow @ Flow::Return(_) => return Ok(flow),
                    Flow::Next(_) | Flow::Continue => {}
                }
            },
            Statement::For { variable, words, body } => {
                for word in self.expand(words)? {
                    self.step()?;
                    self.set(variable, word)?;
                    match self.block(body)? {
                        Flow::Break => break,
                        flow @ Flow::Return(_) => return Ok(flow),
                        Flow::Next(_) | Flow::Continue => {}
                    }
                }
                Ok(Flow::Next(true))
            }
        }
    }

    /// Words with their variables' values: one that is quoted stays one word, one that is not falls
    /// into words at its blanks, and vanishes if it is empty.
    fn expand(&self, words: &[Word]) -> Result<Vec<String>, GrubError> {
        let mut expanded = Vec::new();
        for word in words {
            let mut current = word.is_quoted.then(String::new);
            for piece in &word.pieces {
                match piece {
                    Piece::Text(text) => current.get_or_insert_default().push_str(text),
                    Piece::Variable { name, is_quoted: true } => {
                        current.get_or_insert_default().push_str(&self.value(name));
                    }
                    Piece::Variable { name, is_quoted: false } => {
                        let value = self.value(name);
                        let mut parts = value.split_whitespace();
                        if let Some(first) = parts.next() {
                            current.get_or_insert_default().push_str(first);
                        }
                        for part in parts {
                            expanded.extend(current.replace(part.to_owned()));
                        }
                    }
                }
                if current.as_ref().is_some_and(|word| word.len() > VALUE_SIZE_MAX)
                    || expanded.len() > WORD_COUNT_MAX
                {
                    return Err(GrubError::TooMuch(
                        "has a command of more than 4096 words or 64 KiB",
                    ));
                }
            }
            expanded.extend(current);
        }
        Ok(expanded)
    }

    fn value(&self, name: &str) -> String {
        match name {
            "@" | "*" => self.arguments.join(" "),
            "#" => self.arguments.len().to_string(),
            _ => match name.parse::<usize>() {
                Ok(number) => {
                    let at = number.checked_sub(1);
                    at.and_then(|at| self.arguments.get(at)).cloned().unwrap_or_default()
                }
                Err(_) => self.variable(name).to_owned(),
            },
        }
    }

    fn command(&mut self, words: &[Word], body: Option<&Block>) -> Result<Flow, GrubError> {
        let words = self.expand(words)?;
        let Some((name, arguments)) = words.split_first() else {
            // A block that stands alone.
            return body
                .map_or(Ok(Flow::Next(true)), |body| self.deeper(|machine| machine.block(body)));
        };
        if let Some(body) = body {
            return self.menu_entry(name, arguments, body).map(|()| Flow::Next(true));
        }
        if let Some(function) = self.functions.get(name).cloned() {
            return self.with_arguments(arguments.to_vec(), &function).map(Flow::Next);
        }
        match name.as_str() {
            "break" => return Ok(Flow::Break),
            "continue" => return Ok(Flow::Continue),
            "return" => return Ok(Flow::Return(arguments.first().is_none_or(|code| code == "0"))),
            _ => {}
        }
        self.builtin(name, arguments).map(Flow::Next)
    }

    fn builtin(&mut self, name: &str, arguments: &[String]) -> Result<bool, GrubError> {
        let first = arguments.first().map_or("", String::as_str);
        match name {
            "set" => {
                if let Some((name, value)) = first.split_once('=') {
                    self.set(name, value.to_owned())?;
                }
            }
            "unset" => drop(self.variables.remove(first)),
            "[" => {
                let inner = arguments.split_last().filter(|(last, _)| *last == "]");
                return inner.map_or(Ok(false), |(_, words)| condition::holds(self, words));
            }
            "test" => return condition::holds(self, arguments),
            "source" | "." | "configfile" | "normal" => return self.source(first),
            "load_env" => return self.load_environment(arguments),
            "blscfg" => self.boot_entries()?,
            "linux" | "linux16" | "linuxefi" | "kernel" => return Ok(self.linux(arguments)),
            "initrd" | "initrd16" | "initrdefi" => return Ok(self.initrds(arguments)),
            // One disk, one menu: an entry that starts another boot loader starts nothing here.
            "chainloader" | "multiboot" | "multiboot2" | "knetbsd" | "ntldr" => return Ok(false),
            _ if name == "search" || name.starts_with("search.") => {
                return self.search(name, arguments);
            }
            _ if FAILING.contains(&name) => return Ok(false),
            _ => match name.split_once('=') {
                Some((variable, value)) if arguments.is_empty() => {
                    self.set(variable, value.to_owned())?;
                }
                // What it does is for the eye, or done by the kernel itself.
                _ => {}
            },
        }
        Ok(true)
    }

    fn menu_entry(
        &mut self,
        name: &str,
        arguments: &[String],
        body: &Block,
    ) -> Result<(), GrubError> {
        let is_submenu = name == "submenu";
        if name != "menuentry" && !is_submenu {
            return Ok(());
        }
        if self.entries.len() >= OFFER_COUNT_MAX {
            return Err(GrubError::TooMuch("has more than 256 menu entries"));
        }
        let (mut title, mut id, mut rest) = (None, String::new(), Vec::new());
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--id" => id = arguments.next().cloned().unwrap_or_default(),
                "--class" | "--users" | "--hotkey" | "--source" => drop(arguments.next()),
                word if word.starts_with("--id=") => id = word.replacen("--id=", "", 1),
                word if word.starts_with("--") && title.is_none() => {}
                word if title.is_none() => title = Some(word.to_owned()),
                word => rest.push(word.to_owned()),
            }
        }
        let title = title.unwrap_or_default();
        let content = Content::Block { body: Rc::clone(body), is_submenu, arguments: rest };
        self.entries.push(Entry { title, id, content });
        Ok(())
    }

    fn source(&mut self, path: &str) -> Result<bool, GrubError> {
        let Some(place) = self.place(path) else { return Ok(false) };
        let Some(text) = self.volumes.text(&place)? else { return Ok(false) };
        let script = parse(&text)?;
        self.deeper(|machine| machine.block(&script))?;
        Ok(true)
    }

    /// Reads `grubenv`: lines `name=value` behind a comment.
    fn load_environment(&mut self, arguments: &[String]) -> Result<bool, GrubError> {
        let (mut path, mut wanted) = (format!("{}/grubenv", self.variable("prefix")), Vec::new());
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--file" | "-f" => path = arguments.next().cloned().unwrap_or_default(),
                word if word.starts_with("--file=") => path = word.replacen("--file=", "", 1),
                word if word.starts_with('-') => {}
                word => wanted.push(word.to_owned()),
            }
        }
        let Some(place) = self.place(&path) else { return Ok(false) };
        let Some(text) = self.volumes.text(&place)? else { return Ok(false) };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.split_once('=') else { continue };
            let is_wanted = wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
            if is_wanted && name != ONCE {
                self.set(name, value.to_owned())?;
            }
        }
        Ok(true)
    }

    /// Fedora's command: entries of the Boot Loader Specification are the menu.
    fn boot_entries(&mut self) -> Result<(), GrubError> {
        let folder = match self.variable("blsdir") {
            "" => "/loader/entries".to_owned(),
            folder => folder.to_owned(),
        };
        // On the root, below `/boot` of it, or where a script found the boot partition.
        let boot = format!("({}){folder}", self.variable("boot"));
        for folder in [folder.clone(), format!("/boot{folder}"), boot] {
            let Some(place) = self.place(&folder) else { continue };
            let found = bls::entries(self.volumes, &place, &|name| self.value(name))?;
            if found.is_empty() {
                continue;
            }
            let entries = found.into_iter().map(|found| Entry {
                title: found.offer.title.clone(),
                id: found.id,
                content: Content::Offer(found.offer),
            });
            let left = OFFER_COUNT_MAX.saturating_sub(self.entries.len());
            self.entries.extend(entries.take(left));
            return Ok(());
        }
        Ok(())
    }

    fn linux(&mut self, arguments: &[String]) -> bool {
        let Some((path, words)) = arguments.split_first() else { return false };
        let Some(place) = self.place(path) else { return false };
        self.loaded.kernel = Some(place);
        let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        self.loaded.cmdline = words.join(" ");
        self.loaded.initrds.clear();
        true
    }

    fn initrds(&mut self, arguments: &[String]) -> bool {
        let places = arguments.iter().map(|path| self.place(path));
        let Some(places) = places.collect::<Option<Vec<_>>>() else { return false };
        self.loaded.initrds = places.into_iter().take(INITRD_COUNT_MAX).collect();
        true
    }

    /// `search --fs-uuid --set=root UUID`, `search.fs_label LABEL root`, `search --file /x`.
    fn search(&mut self, name: &str, arguments: &[String]) -> Result<bool, GrubError> {
        let (mut by, mut variable) =
            (name.strip_prefix("search.").unwrap_or("file"), "root".to_owned());
        let mut names: Vec<&str> = Vec::new();
        let mut left = arguments.iter().map(String::as_str).peekable();
        while let Some(argument) = left.next() {
            match argument {
                "--fs-uuid" | "-u" => by = "fs_uuid",
                "--label" | "-l" | "--fs-label" => by = "fs_label",
                "--file" | "-f" => by = "file",
                // Without a name it is the root that is set.
                "--set" | "-s" => {
                    let is_named = |next: &&str| !next.starts_with('-');
                    if left.clone().count() > 1
                        && let Some(next) = left.next_if(is_named)
                    {
                        variable = next.to_owned();
                    }
                }
                "--hint" | "-h" => drop(left.next()),
                word => match word.strip_prefix("--set=") {
                    Some(name) => variable = name.to_owned(),
                    None if word.starts_with("--") => {}
                    None => names.push(word),
                },
            }
        }
        let Some((wanted, more)) = names.split_first() else { return Ok(false) };
        if name != "search"
            && let Some(named) = more.first()
        {
            variable = (*named).to_owned();
        }
        let found = match by {
            "fs_uuid" => self.volumes.by_uuid(wanted),
            "fs_label" => self.volumes.by_label(wanted),
            _ => self.by_file(wanted)?,
        };
        let Some(volume) = found else { return Ok(false) };
        self.set(&variable, self.volumes.name(volume))?;
        Ok(true)
    }

    fn by_file(&self, path: &str) -> Result<Option<usize>, GrubError> {
        for volume in 0..self.volumes.all.len() {
            let place = Place { volume, path: path.to_owned() };
            if self.volumes.file(&place)?.is_some() {
                return Ok(Some(volume));
            }
        }
        Ok(None)
    }
}

/// A word as it stands in a command line, which GRUB quotes if it has blanks.
fn quoted(word: &str) -> String {
    if word.contains(char::is_whitespace) { format!("\"{word}\"") } else { word.to_owned() }
}
