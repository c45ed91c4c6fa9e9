//! Machine code on disk: one file per program, architecture and compiler version, in a directory that only its user can write.
//!
//! What lies there is run, so the directory is created private and refused when it is a link, someone else's, or writable by others.
//! Files appear by renaming, so ranks that start together never see half a file; each begins with the hash of its content, so a damaged
//! one is recognised. Nothing that goes wrong here is an error: it costs a compilation.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::nvrtc::{Compiled, Nvrtc};
use super::{Program, Source};

/// Moves the cache.
pub const VARIABLE: &str = "PREFUSE_CACHE_DIR";

const HASH_LENGTH: usize = 32;

/// The directory that is used: `$PREFUSE_CACHE_DIR`, or `prefuse` under the user's cache directory.
pub fn directory() -> Result<PathBuf, String> {
    let path = location().ok_or_else(|| format!("no cache directory: set {VARIABLE} or HOME"))?;
    create_private(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    refuse_strangers(&path)?;
    Ok(path)
}

fn location() -> Option<PathBuf> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(moved) = variable(VARIABLE) {
        return Some(moved);
    }
    let caches = if cfg!(windows) {
        variable("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        variable("HOME").map(|home| home.join("Library/Caches"))
    } else {
        variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))
    };
    caches.map(|caches| caches.join("prefuse"))
}

fn create_private(path: &Path) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

#[cfg(unix)]
fn refuse_strangers(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    let metadata =
        fs::symlink_metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
    // SAFETY: no arguments, cannot fail.
    let user = unsafe { libc::geteuid() };
    let complaint = if !metadata.is_dir() {
        "is not a directory (links are refused)".to_owned()
    } else if metadata.uid() != user {
        format!("belongs to user {}, not to you ({user})", metadata.uid())
    } else if metadata.mode() & 0o022 != 0 {
        format!(
            "can be written by others (mode {:o}): chmod 700 it",
            metadata.mode() & 0o777
        )
    } else {
        return Ok(());
    };
    Err(format!("{} {complaint}", path.display()))
}

#[cfg(not(unix))]
fn refuse_strangers(path: &Path) -> Result<(), String> {
    // The user's own profile, which others cannot write by default.
    if path.is_dir() {
        Ok(())
    } else {
        Err(format!("{} is not a directory", path.display()))
    }
}

/// `program` compiled for sm_`architecture`, from the cache where it is there.
pub fn compiled(nvrtc: &Nvrtc, program: &Program, architecture: i32) -> super::Result<Vec<u8>> {
    let Ok(directory) = directory() else {
        return nvrtc
            .compile(program, architecture)
            .map(|compiled| compiled.cubin);
    };
    let file = directory.join(format!(
        "{}-{}.cubin",
        program.kernel,
        key(nvrtc.version, program, &program.headers(), architecture)
    ));
    if let Some(cubin) = read(&file) {
        return Ok(cubin);
    }
    let Compiled { cubin, .. } = nvrtc.compile(program, architecture)?;
    // A full or read-only disk costs a compilation next time.
    let _ = write(&file, &cubin);
    Ok(cubin)
}

/// Tells apart everything that machine code follows from: the program's own text and every header's that it gets, compiler,
/// options, constants.
fn key(
    (major, minor): (i32, i32),
    program: &Program,
    headers: &[&Source],
    architecture: i32,
) -> String {
    let mut hash = Sha256::new();
    let mut parts = vec![format!("{major}.{minor}"), program.kernel.to_owned()];
    for source in [program.source].iter().chain(headers) {
        parts.extend([source.name.to_owned(), source.text.to_owned()]);
    }
    parts.extend(Nvrtc::options(architecture));
    parts.extend(program.definitions());
    for part in parts {
        // Lengths keep neighbouring parts apart.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn read(file: &Path) -> Option<Vec<u8>> {
    let content = fs::read(file).ok()?;
    let (hash, cubin) = content.split_at_checked(HASH_LENGTH)?;
    (Sha256::digest(cubin)[..] == *hash && !cubin.is_empty()).then(|| cubin.to_vec())
}

fn write(file: &Path, cubin: &[u8]) -> std::io::Result<()> {
    static TURN: AtomicU64 = AtomicU64::new(0);
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    let draft = file.with_extension(format!("{}-{turn}.tmp", std::process::id()));
    let written = fs::File::create_new(&draft).and_then(|mut draft| {
        draft.write_all(&Sha256::digest(cubin))?;
        draft.write_all(cubin)
    });
    let placed = written.and_then(|()| fs::rename(&draft, file));
    if placed.is_err() {
        let _ = fs::remove_file(&draft);
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::source::{self, HEADERS};

    fn changed(source: &Source) -> Source {
        Source {
            name: source.name,
            text: String::leak(format!("{}\n", source.text)),
        }
    }

    /// `HEADERS` but for one, by its place, whose text is another.
    fn library_with_a_change(at: usize) -> Vec<Source> {
        let headers = HEADERS.iter().enumerate();
        headers
            .map(|(place, header)| match place {
                _ if place == at => changed(header),
                _ => Source { ..*header },
            })
            .collect()
    }

    #[test]
    fn a_changed_header_is_another_key_where_it_is_included_directly_or_not() {
        let program = Program {
            kernel: "rows_forward",
            source: &source::ROWS_FORWARD,
            defines: vec![("STATS", "0x3".to_owned())],
        };
        let of = |library: &[Source]| key((13, 0), &program, &program.source.headers(library), 90);
        let before = of(HEADERS);
        assert_eq!(before, of(HEADERS));
        assert!(!program.source.text.contains("units.cuh"), "not directly");
        for (at, header) in HEADERS.iter().enumerate() {
            let included = program
                .headers()
                .iter()
                .any(|known| known.name == header.name);
            let same = of(&library_with_a_change(at)) == before;
            assert_eq!(same, !included, "{}", header.name);
        }
        let included = program.headers();
        for name in ["ptx.cuh", "units.cuh", "rows.cuh", "rows_traverse.cuh"] {
            assert!(included.iter().any(|header| header.name == name), "{name}");
        }
    }

    #[test]
    fn every_other_part_is_in_the_key_too() {
        let program = |kernel, source, defines: &[(&'static str, &str)]| Program {
            kernel,
            source,
            defines: defines
                .iter()
                .map(|&(name, value)| (name, value.to_owned()))
                .collect(),
        };
        let of = |version, program: &Program, architecture| {
            key(version, program, &program.headers(), architecture)
        };
        let text: &'static Source = Box::leak(Box::new(changed(&source::SEGMENTS)));
        let f32 = program("segment_sum", &source::SEGMENTS, &[("VALUE", "f32")]);
        let mut keys = vec![
            of((13, 0), &f32, 90),
            of((13, 1), &f32, 90),
            of((12, 0), &f32, 90),
            of((13, 0), &f32, 80),
        ];
        for other in [
            program("segment_sum", &source::SEGMENTS, &[("VALUE", "f64")]),
            program("segment_expand", &source::SEGMENTS, &[("VALUE", "f32")]),
            program("segment_sum", text, &[("VALUE", "f32")]),
        ] {
            keys.push(of((13, 0), &other, 90));
        }
        let count = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), count);
    }

    fn fresh(name: &str) -> PathBuf {
        let path =
            std::env::temp_dir().join(format!("prefuse-cache-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn what_was_written_is_read_and_damage_is_noticed() {
        let directory = fresh("damage");
        create_private(&directory).unwrap();
        let file = directory.join("kernel.cubin");
        assert_eq!(read(&file), None);
        write(&file, b"machine code").unwrap();
        assert_eq!(read(&file).as_deref(), Some(&b"machine code"[..]));
        let mut content = fs::read(&file).unwrap();
        content[40] ^= 1;
        fs::write(&file, &content).unwrap();
        assert_eq!(read(&file), None);
        fs::write(&file, &content[..10]).unwrap();
        assert_eq!(read(&file), None);
        write(&file, b"again").unwrap();
        assert_eq!(read(&file).as_deref(), Some(&b"again"[..]));
        assert_eq!(
            fs::read_dir(&directory).unwrap().count(),
            1,
            "no drafts are left behind"
        );
        fs::remove_dir_all(&directory).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn directories_that_others_can_write_are_refused() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let directory = fresh("strangers");
        create_private(&directory).unwrap();
        assert_eq!(
            fs::metadata(&directory).unwrap().permissions().mode() & 0o777,
            0o700
        );
        assert_eq!(refuse_strangers(&directory), Ok(()));
        let link = fresh("link");
        let _ = fs::remove_file(&link);
        symlink(&directory, &link).unwrap();
        assert!(
            refuse_strangers(&link)
                .unwrap_err()
                .contains("links are refused")
        );
        fs::remove_file(&link).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(
            refuse_strangers(&directory)
                .unwrap_err()
                .contains("mode 777")
        );
        fs::remove_dir_all(&directory).unwrap();
    }
}
