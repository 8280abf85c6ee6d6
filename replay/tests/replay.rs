//! Tests of the replay itself: what it simulates is what it says.

use flexdraft::decode::{BatchView, Choice, Flex, Mode, Policy, StepView};
use flexdraft_replay::hindsight::Hindsight;
use flexdraft_replay::informed::Informed;
use flexdraft_replay::load::Load;
use flexdraft_replay::machine::{Machine, Rows};
use flexdraft_replay::oracle::Oracle;
use flexdraft_replay::probe::probed;
use flexdraft_replay::recording::{Draft, Recording};
use flexdraft_replay::report::line;
use flexdraft_replay::simulate::{Driver, replay};

fn recording() -> Recording {
    Recording::parse(include_str!("../recordings/smollm2.txt")).unwrap()
}

fn machines() -> [Machine; 3] {
    [
        include_str!("../machines/h100-qwen3-8b.json"),
        include_str!("../machines/h100-small.json"),
        include_str!("../machines/cpu.json"),
    ]
    .map(|json| serde_json::from_str(json).unwrap())
}

#[test]
fn recordings_are_read_as_they_are_written() {
    let recording = recording();
    assert_eq!(Recording::parse(&recording.text()).unwrap(), recording);
    assert_eq!(recording.block_size, 4);
    // Whole drafts of the same transcripts, `demo/smollm2-drafter/README.md`: 1.370.
    assert!((1.30..1.45).contains(&recording.acceptance_length()), "{}", recording.acceptance_length());
    for (text, error) in [
        ("", "empty"),
        ("pair four\n", "block size"),
        ("pair 2\n0g01\n", "line 2"),
        ("pair 2\n00\n", "line 2"),
    ] {
        assert!(Recording::parse(text).unwrap_err().contains(error), "{text:?}");
    }
}

#[test]
fn drafts_can_be_moved_to_an_acceptance_length() {
    for tau in [1.05, 1.8, 3.0] {
        let moved = recording().with_acceptance_length(tau, 3).acceptance_length();
        assert!((moved / tau - 1.0).abs() < 0.05, "{moved} for {tau}");
    }
}

/// The simulated steps of the H100 take what `machines/h100-qwen3-8b.json` was made from.
#[test]
fn a_step_of_the_predicted_h100() {
    let [h100, ..] = machines();
    let rows = |candidates, groups, apart| {
        [Rows { candidates, logits: candidates, groups, apart, slots: 16, cached: 1024 }]
    };
    for (rows, milliseconds) in [(rows(1, 0, false), 7.5), (rows(5, 5, false), 7.8), (rows(5, 0, true), 10.0)]
    {
        let found = h100.seconds(&rows) * 1e3;
        assert!((found / milliseconds - 1.0).abs() < 0.05, "{found} ms, expected {milliseconds}");
    }
}

/// A policy that counts the tokens of the steps that it observes.
struct Counts(Mode, usize, usize);

impl Policy for Counts {
    fn choose(&mut self, batch: &BatchView<'_>) -> Vec<Choice> {
        self.0.choose(batch)
    }

    fn observe(&mut self, step: &StepView<'_>) {
        self.1 += 1;
        self.2 += step.sequences.iter().map(|sequence| sequence.committed).sum::<usize>();
    }

    fn name(&self) -> &'static str {
        "counts"
    }
}

#[test]
fn fixed_modes_commit_what_the_recording_says() {
    let (recording, [_, _, cpu]) = (recording(), machines());
    let load = Load { not_counted: 0, ..Load::quiet(4) };
    for (mode, tau) in [(Mode::Autoregressive, 1.0), (Mode::Sequential, 1.36), (Mode::Parallel, 1.36)] {
        let mut counts = Counts(mode, 0, 0);
        let found = replay(&mut Driver::Policy(&mut counts), &recording, &cpu, &load, 1);
        assert_eq!((counts.1, counts.2), (load.steps, found.tokens));
        let per_step = found.tokens as f64 / (load.steps * load.batch) as f64;
        assert!((per_step / tau - 1.0).abs() < 0.06, "{mode:?}: {per_step}");
    }
}

/// Returns the tokens per second of the best fixed mode.
fn best_mode(recording: &Recording, machine: &Machine, load: &Load) -> f64 {
    let modes = [Mode::Autoregressive, Mode::Sequential, Mode::Parallel];
    let rates =
        modes.map(|mut mode| replay(&mut Driver::Obliged(&mut mode), recording, machine, load, 1).rate());
    rates.into_iter().fold(0.0, f64::max)
}

/// A line has the rates of its replays, and no bound is below the best mode.
#[test]
fn a_line_compares_a_policy_with_modes_and_bounds() {
    let (recording, [h100, ..]) = (recording(), machines());
    let load = Load { steps: 300, not_counted: 20, ..Load::quiet(2) };
    let found = line(&recording, &h100, &load, 1, &|| Box::new(Mode::Sequential));
    let best = best_mode(&recording, &h100, &load);
    assert_eq!(found.policy, found.sequential);
    assert!((found.of_best_mode - found.policy / best).abs() < 1e-3, "{found:?}");
    assert!(found.oracle_of_best_mode >= 1.0 && found.informed_of_best_mode >= 1.0, "{found:?}");
}

/// The informed bound lies between the modes and the oracle.
#[test]
fn nothing_beats_the_oracle() {
    let recording = recording();
    let hindsight = Hindsight::of(&recording);
    for machine in machines() {
        for load in [Load::quiet(1), Load::quiet(16)].into_iter().chain(Load::all(8)) {
            let load = Load { steps: 600, not_counted: 0, ..load };
            let best = best_mode(&recording, &machine, &load);
            // Time costs on average about 1.5 times the noiseless time: the second half is slower, and there are outliers.
            let rate = best * 1.55;
            let oracle = Driver::Oracle(Oracle { rate });
            let informed = Driver::Informed(Informed { rate, hindsight: &hindsight });
            let [oracle, informed] = [oracle, informed]
                .map(|mut driver| replay(&mut driver, &recording, &machine, &load, 1).rate());
            assert!(oracle > 0.99 * best, "{} {load:?}: {oracle} {best}", machine.name);
            assert!(informed > 0.97 * best, "{} {load:?}: {informed} {best}", machine.name);
            assert!(informed < 1.01 * oracle, "{} {load:?}: {informed} {oracle}", machine.name);
        }
    }
}

/// If confidences tell every match length, the informed bound knows as much as the oracle.
#[test]
fn the_informed_bound_reaches_the_oracle_if_confidences_tell_match_lengths() {
    let draft = Draft { matches: 2, confidence: vec![0.9, 0.8, 0.1] };
    let recording =
        Recording { pair: "certain".into(), block_size: 4, transcripts: vec![vec![draft; 120]; 3] };
    let hindsight = Hindsight::of(&recording);
    for machine in machines() {
        for load in [Load::quiet(1), Load::quiet(16)].into_iter().chain(Load::all(8)) {
            let load = Load { steps: 400, not_counted: 0, ..load };
            let mut plain = Mode::Autoregressive;
            let plain = replay(&mut Driver::Policy(&mut plain), &recording, &machine, &load, 1).rate();
            let rate = plain * 1.55;
            let [oracle, informed] =
                [Driver::Oracle(Oracle { rate }), Driver::Informed(Informed { rate, hindsight: &hindsight })]
                    .map(|mut driver| replay(&mut driver, &recording, &machine, &load, 1).rate());
            assert!((informed / oracle - 1.0).abs() < 0.02, "{} {load:?}: {informed} {oracle}", machine.name);
        }
    }
}

/// A sample of the table that `flexdraft-replay run` prints: `Flex` is never more than 2% below the best fixed mode in
/// hindsight on quiet loads, nor more than 5% on the others, and beats the best mode where a mixture of modes is best.
#[test]
fn flex_is_as_good_as_the_best_mode() {
    let bundled = Recording::parse(include_str!("../recordings/bundled.txt")).unwrap();
    let [h100, small, cpu] = machines();
    let found = |recording: &Recording, machine: &Machine, load: Load| {
        let mut flex = Flex::new(probed(machine, recording.block_size));
        let rate = replay(&mut Driver::Policy(&mut flex), recording, machine, &load, 1).rate();
        rate / best_mode(recording, machine, &load)
    };
    let mut below = Vec::new();
    for (recording, machine, load, least) in [
        (&bundled, &h100, Load::quiet(1), 0.98),
        (&bundled, &h100, Load::quiet(3), 1.05),
        (&bundled, &h100, Load::quiet(16), 0.98),
        (&bundled, &small, Load::quiet(8), 0.98),
        (&bundled, &cpu, Load::quiet(8), 0.98),
        (&recording(), &h100, Load::quiet(8), 0.98),
        (&recording(), &cpu, Load::quiet(1), 0.98),
        (&bundled, &h100, Load::all(16)[0], 0.95),
        (&bundled, &cpu, Load::all(16)[1], 0.95),
        (&bundled, &cpu, Load::all(16)[2], 0.95),
        (&bundled, &cpu, Load::all(16)[3], 0.95),
        (&bundled, &h100, Load::all(16)[4], 0.95),
        (&bundled, &h100, Load::quiet(256), 0.98),
        (&recording(), &small, Load::quiet(256), 0.98),
        (&bundled, &cpu, Load { arrivals: true, ..Load::quiet(1) }, 0.95),
    ] {
        let of_best_mode = found(recording, machine, load);
        if of_best_mode < least {
            below.push(format!("{} {} {load:?}: {of_best_mode}", recording.pair, machine.name));
        }
    }
    assert!(below.is_empty(), "{}", below.join("\n"));
}

/// A request that must draft gets its drafts from every policy that drafts, and from no policy that never does.
#[test]
fn the_mode_without_drafts_never_drafts() {
    let (recording, [h100, ..]) = (recording(), machines());
    let load = Load { must_draft: 1, steps: 50, not_counted: 0, ..Load::quiet(2) };
    let mut mode = Mode::Autoregressive;
    let plain = replay(&mut Driver::Policy(&mut mode), &recording, &h100, &load, 1);
    assert_eq!((plain.verified, plain.apart, plain.tokens), (0, 0, 100));
    let obliged = replay(&mut Driver::Obliged(&mut mode), &recording, &h100, &load, 1);
    assert!(obliged.verified > 0 && obliged.apart == 50, "{obliged:?}");
}

/// Drivers that commit more tokens per step read as many cached positions per token.
#[test]
fn cached_positions_do_not_depend_on_the_driver() {
    let bundled = Recording::parse(include_str!("../recordings/bundled.txt")).unwrap();
    let [h100, ..] = machines();
    let load = Load { steps: 4000, ..Load::quiet(4) };
    let mut means = Vec::new();
    for mode in [Mode::Autoregressive, Mode::Sequential] {
        let mut positions = Positions(mode, 0.0);
        replay(&mut Driver::Policy(&mut positions), &bundled, &h100, &load, 1);
        means.push(positions.1 / (load.steps * load.batch) as f64);
    }
    assert!((means[0] / means[1] - 1.0).abs() < 0.15, "{means:?}");
}

/// A mode that sums the cached positions that it sees.
struct Positions(Mode, f64);

impl Policy for Positions {
    fn choose(&mut self, batch: &BatchView<'_>) -> Vec<Choice> {
        self.1 += batch.sequences.iter().map(|view| view.position as f64).sum::<f64>();
        self.0.choose(batch)
    }

    fn drafts(&self) -> bool {
        self.0.drafts()
    }

    fn name(&self) -> &'static str {
        "positions"
    }
}

/// Better drafts lead to drafting, and drafts that nothing accepts do not.
#[test]
fn flex_drafts_where_drafts_are_accepted() {
    let bundled = Recording::parse(include_str!("../recordings/bundled.txt")).unwrap();
    let [h100, ..] = machines();
    let verified = |tau| {
        let recording = bundled.with_acceptance_length(tau, 7);
        let mut flex = Flex::new(probed(&h100, recording.block_size));
        let found = replay(&mut Driver::Policy(&mut flex), &recording, &h100, &Load::quiet(16), 1);
        found.verified as f64 / found.verifications as f64
    };
    let (many, few) = (verified(5.0), verified(1.05));
    assert!(many > 4.0, "{many}");
    assert!(few < 0.2, "{few}");
}

/// The durations of steps are expected with a median error of at most 10%, beside 10% noise.
#[test]
fn flex_expects_the_durations_of_steps() {
    let bundled = Recording::parse(include_str!("../recordings/bundled.txt")).unwrap();
    for machine in machines() {
        for load in [Load::quiet(1), Load::quiet(16), Load::all(16)[2]] {
            let mut flex = Flex::new(probed(&machine, bundled.block_size));
            replay(&mut Driver::Policy(&mut flex), &bundled, &machine, &load, 1);
            let error = flex.step_times().unwrap().median_error;
            assert!(error <= 0.1, "{} {load:?}: {error}", machine.name);
        }
    }
}
