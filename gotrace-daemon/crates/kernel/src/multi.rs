//! gotrace's programs, loaded for links of many uprobes. aya 0.14 loads them for perf events only; its own
//! reader of object files does the rest here, with the maps that aya has made.

use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    io,
    num::NonZeroU32,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::maps::Map;
use aya_obj::{Object, ProgramSection};

use super::{Error, bpf};

/// The programs; each is loaded when it is first attached.
pub(super) struct Programs {
    code: HashMap<String, Vec<u64>>,
    license: CString,
    loaded: HashMap<String, OwnedFd>,
    /// The instructions name these by their numbers.
    _maps: Vec<OwnedFd>,
}

impl Programs {
    /// Reads the programs out of the object whose maps are in `ebpf`, all of them still.
    pub(super) fn new(object: &[u8], ebpf: &aya::Ebpf) -> Result<Self, Error> {
        let wrong = |what: &str, e: &dyn std::error::Error| Error::Object(format!("{what}: {e}"));
        let mut object = Object::parse(object).map_err(|e| wrong("programs that can be read", &e))?;
        let mut maps = HashMap::new();
        for (name, map) in ebpf.maps() {
            let data = match map {
                Map::Array(data)
                | Map::HashMap(data)
                | Map::PerCpuArray(data)
                | Map::ProgramArray(data)
                | Map::RingBuf(data) => data,
                _ => return Err(Error::Object(format!("map {name} of the expected type"))),
            };
            let fd = data.fd().as_fd().try_clone_to_owned();
            let fd = fd.map_err(|e| Error::from_loader(format!("keep the map {name} open"), &e))?;
            maps.insert(name.to_owned(), fd);
        }
        let described = std::mem::take(&mut object.maps);
        let numbered = described
            .iter()
            .filter_map(|(name, map)| maps.get(name).map(|fd| (name.as_str(), fd.as_raw_fd(), map)));
        let sections = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_maps(numbered, &sections).map_err(|e| wrong("maps that its programs name", &e))?;
        object.relocate_calls(&sections).map_err(|e| wrong("functions that its programs call", &e))?;
        let mut code = HashMap::new();
        for (name, program) in &object.programs {
            if let (ProgramSection::UProbe { .. }, Some(function)) =
                (&program.section, object.functions.get(&program.function_key()))
            {
                let instructions = function
                    .instructions
                    .iter()
                    .map(|i| bpf::instruction(i.code, i.dst_reg(), i.src_reg(), i.off, i.imm));
                code.insert(name.clone(), instructions.collect());
            }
        }
        Ok(Self {
            code,
            license: object.license,
            loaded: HashMap::new(),
            _maps: maps.into_values().collect(),
        })
    }

    /// Names of all.
    pub(super) fn names(&self) -> Vec<String> {
        self.code.keys().cloned().collect()
    }

    /// Has the kernel take a program, once.
    pub(super) fn load(&mut self, name: &str) -> Result<&OwnedFd, Error> {
        if !self.loaded.contains_key(name) {
            let code = self.code.get(name).ok_or_else(|| Error::Object(format!("program {name}")))?;
            let program = bpf::load_for_multi(name, code, &self.license)
                .map_err(|r| Error::refused(format!("load the program {name}"), &r.error, &r.log))?;
            self.loaded.insert(name.to_owned(), program);
        }
        self.loaded.get(name).ok_or_else(|| Error::Object(format!("program {name}")))
    }

    /// Runs a program at places of a file, each with its cookie; the link goes with its descriptor.
    pub(super) fn link(
        &mut self,
        name: &str,
        file: &Path,
        places: &[(u64, u64)],
        pid: Option<NonZeroU32>,
    ) -> Result<OwnedFd, Error> {
        let program = self.load(name)?;
        let path = CString::new(file.as_os_str().as_bytes());
        let link = path.map_err(io::Error::from).and_then(|path| {
            let path: &CStr = &path;
            bpf::link_multi(program.as_fd(), path, places, pid)
        });
        link.map_err(|e| {
            let at: Vec<String> = places.iter().map(|(offset, _)| format!("{offset:#x}")).collect();
            let what = format!("put probes at {} of {} (program {name})", at.join(", "), file.display());
            Error::from_loader(what, &e)
        })
    }
}
