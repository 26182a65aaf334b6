//! Tables for people: columns as wide as their widest cell.

use crate::lifecycle::state::State;

/// The table of `list`, as runc prints it.
pub fn containers(states: &[State]) -> String {
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows = states.iter().map(|state| {
        [
            state.id.clone(),
            state.pid.to_string(),
            state.status.to_string(),
            state.bundle.clone(),
            state.created.clone(),
            state.owner.clone(),
        ]
    });
    columns(&std::iter::once(header).chain(rows).collect::<Vec<_>>())
}

/// runc's columns: at least 12 wide, 3 apart.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    const NARROWEST: usize = 12;
    const APART: usize = 3;
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = NARROWEST.max(*width).max(cell.chars().count() + APART);
        }
    }
    let mut table = String::new();
    for row in rows {
        for (index, (cell, width)) in row.iter().zip(widths).enumerate() {
            let width = if index + 1 == N { 0 } else { width };
            table.push_str(&format!("{cell:width$}"));
        }
        table.push('\n');
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_is_runcs_header() {
        assert_eq!(
            containers(&[]),
            "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n"
        );
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            ["ID".to_owned(), "X".to_owned()],
            ["a-rather-long-id".to_owned(), "1".to_owned()],
        ];
        assert_eq!(columns(&rows), "ID                 X\na-rather-long-id   1\n");
    }
}
