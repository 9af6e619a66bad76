//! A bandwidth limit, or a timetable of limits by local time of day, in the notation that rclone made known:
//! `10M`, `off`, or `08:00,512k 12:00,10M 13:00,512k 18:00,off`. Each entry holds from its time until the next
//! one, the last one over midnight.

use std::str::FromStr;

use goldwire_stdx::ByteSize;

/// Limits over the day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// Minute of the day and limit from then on, ascending, never empty.
    entries: Vec<(u16, Option<u64>)>,
}

impl Schedule {
    /// The limit in bytes per second at this minute of the day; none is unlimited.
    pub(crate) fn limit_at(&self, minute: u16) -> Option<u64> {
        let current = self.entries.iter().rev().find(|(start, _)| *start <= minute).or(self.entries.last());
        current.and_then(|(_, limit)| *limit)
    }

    /// The limit now.
    pub(crate) fn limit_now(&self) -> Option<u64> {
        let now = jiff::Zoned::now();
        self.limit_at((i32::from(now.hour()) * 60 + i32::from(now.minute())) as u16)
    }

    /// Whether the limit depends on the time.
    pub(crate) fn changes(&self) -> bool {
        self.entries.len() > 1
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !text.contains(',') {
            return Ok(Self { entries: vec![(0, parse_limit(text.trim())?)] });
        }
        let mut entries = text.split_whitespace().map(parse_entry).collect::<Result<Vec<_>, _>>()?;
        entries.sort_unstable();
        match entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(format!("two limits for {:02}:{:02}", pair[0].0 / 60, pair[0].0 % 60)),
            None => Ok(Self { entries }),
        }
    }
}

fn parse_entry(entry: &str) -> Result<(u16, Option<u64>), String> {
    let error = || format!("{entry:?} is not a time and a limit, such as 18:00,10M");
    let (time, limit) = entry.split_once(',').ok_or_else(error)?;
    let (hour, minute) = time.split_once(':').ok_or_else(error)?;
    let (hour, minute): (u16, u16) =
        (hour.parse().map_err(|_| error())?, minute.parse().map_err(|_| error())?);
    if hour > 23 || minute > 59 {
        return Err(error());
    }
    Ok((hour * 60 + minute, parse_limit(limit)?))
}

fn parse_limit(text: &str) -> Result<Option<u64>, String> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    let text = text.strip_suffix("/s").unwrap_or(text);
    match text.parse::<ByteSize>() {
        Ok(ByteSize(0)) => Err("a limit of 0 sends nothing; write off for no limit".into()),
        Ok(ByteSize(bytes)) => Ok(Some(bytes)),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_day_is_covered_and_the_night_belongs_to_the_last_entry() {
        let schedule: Schedule = "08:00,512k 18:30,10M 23:00,off".parse().unwrap();
        for (time, limit) in [
            ((0, 0), None),
            ((7, 59), None),
            ((8, 0), Some(512 * 1024)),
            ((18, 29), Some(512 * 1024)),
            ((18, 30), Some(10 << 20)),
            ((23, 0), None),
        ] {
            assert_eq!(schedule.limit_at(time.0 * 60 + time.1), limit, "{time:?}");
        }
        assert_eq!("20MB/s".parse::<Schedule>().unwrap().limit_at(77), Some(20_000_000));
        assert_eq!("off".parse::<Schedule>().unwrap().limit_at(0), None);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "0", "x", "25:00,1M", "08:00,1M 08:00,2M", "08:00", "8,1M", "08:00,0"] {
            assert!(text.parse::<Schedule>().is_err(), "{text}");
        }
    }
}
