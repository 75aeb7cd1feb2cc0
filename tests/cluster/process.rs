//! The system's processes, as `/proc` shows them.

/// Children of a process, each with its name.
pub(crate) fn children_of(parent: u32) -> Vec<(u32, String)> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // `pid (name) state parent ...`; the name may hold anything but is cut to 15 bytes.
        let Some((head, tail)) = stat.rsplit_once(')') else { continue };
        let name = head.split_once('(').map(|(_, name)| name.to_owned()).unwrap_or_default();
        if tail.split_whitespace().nth(1) == Some(&parent.to_string()) {
            children.push((pid, name));
        }
    }
    children
}

/// Whether a process is there and not a zombie.
pub(crate) fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, tail)| tail.split_whitespace().next());
    state.is_some_and(|state| state != "Z")
}
