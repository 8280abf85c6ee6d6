//! Dates in chat templates: the part of Python's `strftime` that templates use.

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// Names of the weekdays, starting with the weekday of 1970-01-01.
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Formats a time like Python's `strftime`; `unix_seconds` are the seconds since 1970-01-01 in the time zone of
/// the result.
///
/// The error is the first unsupported conversion.
pub(super) fn strftime(format: &str, unix_seconds: u64) -> Result<String, String> {
    let (days, second) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let (year, month, day) = civil_date(days);
    let month_name = MONTHS.get(month as usize - 1).copied().unwrap_or_default();
    let day_name = DAYS.get((days % 7) as usize).copied().unwrap_or_default();
    let abbreviated = |name: &str| name.chars().take(3).collect::<String>();
    let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };

    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let conversion: String = match rest.next() {
            Some('-') => ['-'].into_iter().chain(rest.next()).collect(),
            next => next.into_iter().collect(),
        };
        out.push_str(&match conversion.as_str() {
            "Y" => format!("{year:04}"),
            "y" => format!("{:02}", year % 100),
            "j" => format!("{:03}", days - days_before_year(year) + 1),
            "m" => format!("{month:02}"),
            "-m" => month.to_string(),
            "B" => month_name.to_owned(),
            "b" | "h" => abbreviated(month_name),
            "d" => format!("{day:02}"),
            "-d" => day.to_string(),
            "e" => format!("{day:2}"),
            "u" => ((days + 3) % 7 + 1).to_string(),
            "w" => ((days + 4) % 7).to_string(),
            "A" => day_name.to_owned(),
            "a" => abbreviated(day_name),
            "H" => format!("{hour:02}"),
            "I" => format!("{hour12:02}"),
            "-H" => hour.to_string(),
            "-I" => hour12.to_string(),
            "M" => format!("{minute:02}"),
            "-M" => minute.to_string(),
            "S" => format!("{second:02}"),
            "-S" => second.to_string(),
            "F" => format!("{year:04}-{month:02}-{day:02}"),
            "D" | "x" => format!("{month:02}/{day:02}/{:02}", year % 100),
            "T" | "X" => format!("{hour:02}:{minute:02}:{second:02}"),
            "R" => format!("{hour:02}:{minute:02}"),
            "p" => (if hour < 12 { "AM" } else { "PM" }).to_owned(),
            "%" => "%".to_owned(),
            other => return Err(format!("%{other}")),
        });
    }
    Ok(out)
}

/// Returns the number of days from 1970-01-01 to the first day of a year from 1970 on.
fn days_before_year(year: u64) -> u64 {
    let leap_days = |year: u64| year / 4 - year / 100 + year / 400;
    365 * (year - 1970) + leap_days(year - 1) - leap_days(1969)
}

/// Returns year, month (1..=12) and day (1..=31) of a day counted from 1970-01-01, in the Gregorian calendar.
/// (Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`.)
fn civil_date(days: u64) -> (u64, u64, u64) {
    // Years start in March in this calculation, so that a leap day is the last day of its year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::strftime;

    #[test]
    fn dates_that_a_calendar_shows() {
        let date = |seconds| strftime("%A %-d %B %Y (%a %d %b %y), %m, %I:%M:%S %p, %H%%", seconds).unwrap();
        assert_eq!(date(0), "Thursday 1 January 1970 (Thu 01 Jan 70), 01, 12:00:00 AM, 00%");
        assert_eq!(date(951_827_696), "Tuesday 29 February 2000 (Tue 29 Feb 00), 02, 12:34:56 PM, 12%");
        assert_eq!(date(4_107_542_399), "Sunday 28 February 2100 (Sun 28 Feb 00), 02, 11:59:59 PM, 23%");
        assert_eq!(date(4_107_542_400), "Monday 1 March 2100 (Mon 01 Mar 00), 03, 12:00:00 AM, 00%");
        let more = |seconds| strftime("%j %e %u %w %F %D %T %R %-H %-I", seconds).unwrap();
        assert_eq!(more(0), "001  1 4 4 1970-01-01 01/01/70 00:00:00 00:00 0 12");
        assert_eq!(more(951_827_696), "060 29 2 2 2000-02-29 02/29/00 12:34:56 12:34 12 12");
        assert_eq!(more(1_735_667_999), "366 31 2 2 2024-12-31 12/31/24 17:59:59 17:59 17 5");
        assert_eq!(strftime("%d %Q", 0), Err("%Q".into()));
        assert_eq!(strftime("100%", 0), Err("%".into()));
    }
}
