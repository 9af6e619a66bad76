//! Choosing one of several images.

use goldwire_stdx::printable;

use crate::endpoint::Endpoint;
use crate::failure::Result;
use crate::job::{Choice, Select};
use crate::list::matches;
use crate::wire::{Candidate, Failure, FailureKind};

/// The images that `place` may offer. A source that answers a question about a folder names images in that folder that
/// match the pattern; one that is asked about a file names that file. Anything else would let it choose what is
/// overwritten at the targets (CVE-2019-6111, CVE-2022-29154). A name that a terminal would obey is none of an image: in a
/// folder it is in nobody's way.
pub(crate) fn offered(
    place: &Endpoint,
    is_folder: bool,
    mut images: Vec<Candidate>,
    pattern: Option<&str>,
) -> Result<Vec<Candidate>> {
    let folder = if place.path.ends_with('/') { place.path.clone() } else { format!("{}/", place.path) };
    for image in &images {
        let fits = match (is_folder, image.path.strip_prefix(&folder)) {
            (false, _) => image.path == place.path,
            (true, Some(name)) => {
                let is_name = !matches!(name, "" | "." | "..") && !name.contains('/');
                is_name && pattern.is_none_or(|pattern| matches(pattern, name))
            }
            (true, None) => false,
        };
        if fits && !is_folder && !is_plain(image) {
            let text = format!("the name of {} has characters that a terminal obeys", printable(&image.path));
            return Err(Failure::new(FailureKind::Invalid, text).hint("rename the image"));
        }
        if !fits {
            let text =
                format!("{place} offers {}, which is not what it was asked for", printable(&image.path));
            return Err(Failure::new(FailureKind::Invalid, text)
                .hint("the file name at the targets would be the source's choice; rename the image, or leave this source"));
        }
    }
    images.retain(is_plain);
    Ok(images)
}

fn is_plain(image: &Candidate) -> bool {
    *printable(&image.path) == image.path
}

/// Picks one candidate, or says what there is to pick from.
pub(crate) fn choose(place: &Endpoint, mut images: Vec<Candidate>, select: &Select) -> Result<Candidate> {
    let choice = select.choice;
    if let Choice::Uuid(uuid) = choice {
        images.retain(|image| image.uuid == Some(uuid));
    }
    if choice == Choice::Youngest {
        // Two of the same second cannot be told apart by age.
        let youngest = images.iter().map(|image| image.modified).max();
        images.retain(|image| Some(image.modified) == youngest);
    }
    if images.len() > 1 {
        let mut text = format!("{place}: {} images fit", images.len());
        for image in images.iter().take(20) {
            text += "\n  ";
            text += &describe(image, select.show_time);
        }
        if images.len() > 20 {
            text += "\n  …";
        }
        return Err(Failure::new(FailureKind::Invalid, text)
            .hint("name one; narrow --match; or choose by a rule: --youngest, --uuid UUID"));
    }
    images.pop().ok_or_else(|| {
        Failure::new(FailureKind::Invalid, format!("{place}: no image fits"))
            .hint("look at what is there with `goldwire disk info`; --match takes *, ? and [a-z]")
    })
}

fn describe(image: &Candidate, show_time: fn(i64) -> String) -> String {
    let uuid = image.uuid.map_or("no uuid".to_owned(), |uuid| uuid.to_string());
    let hidden = if image.hidden { ", hidden" } else { "" };
    let parent = if image.has_parent { ", has a parent" } else { "" };
    format!(
        "{}  {uuid}  {} ({} in the file)  modified {}{hidden}{parent}",
        image.path,
        goldwire_stdx::ByteSize(image.size),
        goldwire_stdx::ByteSize(image.file_length),
        show_time(image.modified),
    )
}

#[cfg(test)]
mod tests {
    use goldwire_stdx::Uuid;
    use proptest::prelude::*;

    use super::*;

    fn image(path: &str, modified: i64, uuid: u8) -> Candidate {
        Candidate {
            path: path.into(),
            format: "VhdDynamic".into(),
            size: 1 << 30,
            file_length: 1 << 20,
            uuid: Some(Uuid([uuid; 16])),
            hidden: false,
            has_parent: false,
            modified,
            created: None,
        }
    }

    proptest! {
        /// The rule: what is offered is in the folder that was asked for, under a plain name that matches, or it is the
        /// file that was asked for. Whatever else comes, nothing of it is taken; a name that is not plain keeps no other
        /// image from being taken.
        #[test]
        fn a_source_offers_what_it_was_asked_for_or_nothing(
            folder in "(/[a-c]{1,2}){0,2}", name in "[a-c.]{1,3}", offered_path in "[a-c/.\u{1b}\n]{0,8}",
            is_folder: bool, has_pattern: bool, exact: bool,
        ) {
            let asked = if is_folder { format!("{folder}/") } else { format!("{folder}/{name}") };
            let place = Endpoint { host: Some("evil".into()), path: asked.clone() };
            let path = if exact { format!("{folder}/{name}") } else { offered_path };
            let pattern = has_pattern.then_some("a*");
            let taken = offered(&place, is_folder, vec![image(&path, 0, 1)], pattern);
            let file = path.rsplit('/').next().unwrap();
            let is_name = !["", ".", ".."].contains(&file);
            let is_there = if is_folder { is_name && path == format!("{asked}{file}") } else { path == asked };
            let fits = !is_folder || pattern.is_none() || file.starts_with('a');
            let is_plain = !path.contains(['\u{1b}', '\n']);
            prop_assert_eq!(taken.is_ok(), is_there && fits && (is_plain || is_folder), "{} for {}", path, asked);
            prop_assert_eq!(taken.map_or(0, |taken| taken.len()), usize::from(is_there && fits && is_plain));
        }
    }

    #[test]
    fn several_candidates_are_listed_and_a_rule_picks_one() {
        let select = |choice| Select { choice, ..Select::default() };
        let place: Endpoint = "h:/sr".parse().unwrap();
        let images = vec![image("/sr/a.vhd", 5, 1), image("/sr/b.vhd", 9, 2)];
        let refused = choose(&place, images.clone(), &select(Choice::Only)).unwrap_err().to_string();
        assert!(refused.contains("/sr/a.vhd") && refused.contains("02020202-0202"), "{refused}");
        assert_eq!(choose(&place, images.clone(), &select(Choice::Youngest)).unwrap().path, "/sr/b.vhd");
        assert_eq!(
            choose(&place, images.clone(), &select(Choice::Uuid(Uuid([1; 16])))).unwrap().path,
            "/sr/a.vhd"
        );
        assert!(choose(&place, images, &select(Choice::Uuid(Uuid([3; 16])))).is_err());
        let twins = vec![image("/sr/a.vhd", 5, 1), image("/sr/b.vhd", 5, 2)];
        assert!(choose(&place, twins, &select(Choice::Youngest)).is_err(), "the same age decides nothing");
    }
}
