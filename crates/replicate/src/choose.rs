//! Choosing one of several images.

use goldwire_stdx::Uuid;

use crate::endpoint::Endpoint;
use crate::failure::Result;
use crate::job::{Choice, Select};
use crate::wire::{Candidate, Failure, FailureKind};

/// Picks one candidate, or says what there is to pick from.
pub(crate) fn choose(place: &Endpoint, mut images: Vec<Candidate>, select: &Select) -> Result<Candidate> {
    let choice = select.choice;
    if let Choice::Uuid(uuid) = choice {
        images.retain(|image| image.uuid == Some(uuid.0));
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
            .hint("name one, narrow --match, or choose by a rule: --youngest, --uuid UUID"));
    }
    images.pop().ok_or_else(|| {
        Failure::new(FailureKind::Invalid, format!("{place}: no image fits"))
            .hint("look at what is there with `goldwire disk info`; --match takes *, ? and [a-z]")
    })
}

fn describe(image: &Candidate, show_time: fn(i64) -> String) -> String {
    let uuid = image.uuid.map_or("no uuid".to_owned(), |uuid| Uuid(uuid).to_string());
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
    use super::*;

    #[test]
    fn several_candidates_are_listed_and_a_rule_picks_one() {
        let image = |path: &str, modified, uuid| Candidate {
            path: path.into(),
            format: "VhdDynamic".into(),
            size: 1 << 30,
            file_length: 1 << 20,
            uuid: Some([uuid; 16]),
            hidden: false,
            has_parent: false,
            modified,
            created: None,
        };
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
