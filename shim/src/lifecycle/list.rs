//! `list`: all containers.

use std::fs;

use super::Error;
use super::state::{self, State};
use super::store::Store;

/// The states of all containers, by id. One that is deleted meanwhile is left out.
///
/// # Errors
/// When the directory of containers can't be read.
pub fn list(store: &Store) -> Result<Vec<State>, Error> {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut states = Vec::new();
    for id in store.ids()? {
        let Ok(directory) = store.open(&id) else { continue };
        if let Ok(state) = state::of(&directory) {
            states.push(State {
                owner: user_name(&users, directory.owner()),
                ..state
            });
        }
    }
    Ok(states)
}

/// passwd(5); the number where there is no name, as runc prints it.
fn user_name(users: &str, uid: u32) -> String {
    let text = uid.to_string();
    users
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)? == text).then(|| name.to_owned())
        })
        .unwrap_or_else(|| format!("#{uid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_named_where_they_have_a_name() {
        let users = "root:x:0:0:root:/root:/bin/sh\nbroken\nanna:x:1000:1000::/home/anna:/bin/sh\n";
        assert_eq!(user_name(users, 0), "root");
        assert_eq!(user_name(users, 1000), "anna");
        assert_eq!(user_name(users, 7), "#7");
    }
}
