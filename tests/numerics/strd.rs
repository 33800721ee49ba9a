//! The linear-regression sets of NIST's Statistical Reference Datasets (public domain): every coefficient and standard error by the
//! default solver, as near to the certified values as rounding the decimal data to floats allows.
//!
//! Certified values have 15 digits, so a perfect answer scores about 14.5. `cargo test --test numerics strd -- --nocapture` prints the
//! table that stands in `docs/accuracy.md`.
#![allow(clippy::excessive_precision, clippy::unreadable_literal, clippy::print_stdout)] // published digits; the table is the point

use faer::Mat;
use lsqd::lsq::double_double::Double;
use lsqd::lsq::{Block, Error, RowSource, Solver, Specification, fit};

/// A set: predictors by row, or one predictor and a degree; responses; certified (estimate, standard error), R² and residual deviation.
struct Set {
    name: &'static str,
    rows: Vec<Vec<f64>>,
    degree: usize,
    intercept: bool,
    response: Vec<f64>,
    certified: Vec<(f64, f64)>,
    r2: f64,
    residual_std: f64,
    /// Digits to be reached in the worst coefficient and the worst standard error.
    goal: (f64, f64),
}

/// Rows whose powers carry their rounding errors, as the `polynomial` feature hands them over.
struct Powers {
    high: Mat<f64>,
    low: Mat<f64>,
    response: Mat<f64>,
}

impl RowSource for Powers {
    fn predictors(&self) -> usize {
        self.high.ncols()
    }

    fn responses(&self) -> usize {
        1
    }

    fn pass(&mut self, visit: &mut dyn FnMut(&Block<'_>) -> Result<(), Error>) -> Result<(), Error> {
        visit(&Block { design: self.high.as_ref(), design_low: Some(self.low.as_ref()), response: self.response.as_ref(), weights: None })
    }
}

impl Set {
    fn source(&self) -> Powers {
        let rows = self.rows.len();
        let columns = if self.degree > 1 { self.degree } else { self.rows[0].len() };
        let value = |row: usize, column: usize| {
            if self.degree > 1 {
                (0..column).fold(Double::from(self.rows[row][0]), |power, _| power * self.rows[row][0])
            } else {
                Double::from(self.rows[row][column])
            }
        };
        Powers {
            high: Mat::from_fn(rows, columns, |row, column| value(row, column).hi),
            low: Mat::from_fn(rows, columns, |row, column| value(row, column).lo),
            response: Mat::from_fn(rows, 1, |row, _| self.response[row]),
        }
    }
}

fn digits(got: f64, certified: f64) -> f64 {
    if got == certified {
        15.0
    } else if certified == 0.0 {
        (-got.abs().log10()).min(15.0)
    } else {
        (-((got - certified) / certified).abs().log10()).clamp(0.0, 15.0)
    }
}

/// Digits of the worst coefficient, of the worst standard error, and those the fit claims.
fn reached(set: &Set, solver: Solver) -> (f64, f64, f64) {
    let specification = Specification { intercept: set.intercept, solver, ..Specification::default() };
    let fit = fit(&mut set.source(), &specification).unwrap();
    let estimates = super::coefficients(&fit);
    let errors = super::std_errors(&fit);
    assert_eq!(estimates.len(), set.certified.len());
    let worst = |values: &[f64], certified: &dyn Fn(usize) -> f64| {
        values.iter().enumerate().map(|(place, value)| digits(*value, certified(place))).fold(15.0, f64::min)
    };
    let figures = &fit.statistics[0];
    assert!(digits(figures.r2, set.r2) > 13.0, "{} R²", set.name);
    assert!(digits(figures.residual_std, set.residual_std) > 13.0, "{} residual deviation", set.name);
    (worst(&estimates, &|place| set.certified[place].0), worst(&errors, &|place| set.certified[place].1), fit.digits)
}

#[test]
fn strd_is_met_to_what_rounding_the_data_allows() {
    println!("| set | coefficients | standard errors |\n|---|---|---|");
    for set in sets() {
        let (coefficients, errors, claimed) = reached(&set, Solver::Auto);
        println!("| {} | {coefficients:.1} | {errors:.1} |", set.name);
        assert!(coefficients >= set.goal.0 && errors >= set.goal.1, "{}: {coefficients} {errors}", set.name);
        // Digits are claimed of the problem as floats state it; the certified values are those of the decimals.
        assert!(claimed > 13.0, "{}: {claimed}", set.name);
    }
}

#[test]
fn strd_is_met_by_every_solver_that_takes_it() {
    for set in sets() {
        for solver in [Solver::Qr, Solver::Svd, Solver::Exact] {
            let (coefficients, errors, _) = reached(&set, solver);
            assert!(coefficients >= set.goal.0 && errors >= set.goal.1, "{} {solver:?}: {coefficients} {errors}", set.name);
        }
    }
}

fn single(x: &[f64]) -> Vec<Vec<f64>> {
    x.iter().map(|x| vec![*x]).collect()
}

fn upto(first: u8, last: u8) -> Vec<Vec<f64>> {
    (first..=last).map(|x| vec![f64::from(x)]).collect()
}

/// Σ factorᵏxᵏ for k from 0 to 5, plus a multiple of the errors; Wampler2's factor is a tenth, and its decimals are exact to 5 places.
fn wampler(factor: f64, errors: f64) -> Vec<f64> {
    (0..=20)
        .map(|x| {
            let x = f64::from(x);
            if factor == 1.0 {
                (0..=5).map(|power| x.powi(power)).sum::<f64>() + errors * WAMPLER_ERRORS[x as usize]
            } else {
                ((0..=5).map(|power| x.powi(power) * 10f64.powi(5 - power)).sum::<f64>()) / 1e5
            }
        })
        .collect()
}

fn sets() -> Vec<Set> {
    vec![
        Set {
            name: "Norris",
            rows: single(NORRIS_X),
            degree: 1,
            intercept: true,
            response: NORRIS_Y.to_vec(),
            certified: vec![(-0.262323073774029, 0.232818234301152), (1.00211681802045, 0.429796848199937e-3)],
            r2: 0.999993745883712,
            residual_std: 0.884796396144373,
            goal: (14.0, 13.8),
        },
        Set {
            name: "Pontius",
            rows: single(PONTIUS_X),
            degree: 2,
            intercept: true,
            response: PONTIUS_Y.to_vec(),
            certified: vec![
                (0.673565789473684e-3, 0.107938612033077e-3),
                (0.732059160401003e-6, 0.157817399981659e-9),
                (-0.316081871345029e-14, 0.486652849992036e-16),
            ],
            r2: 0.999999900178537,
            residual_std: 0.205177424076185e-3,
            goal: (13.4, 13.7),
        },
        Set {
            name: "NoInt1",
            rows: upto(60, 70),
            degree: 1,
            intercept: false,
            response: (130..=140).map(f64::from).collect(),
            certified: vec![(2.07438016528926, 0.165289256198347e-1)],
            r2: 0.999365492298663,
            residual_std: 3.56753034006338,
            goal: (14.6, 14.9),
        },
        Set {
            name: "NoInt2",
            rows: upto(4, 6),
            degree: 1,
            intercept: false,
            response: vec![3.0, 4.0, 4.0],
            certified: vec![(0.727272727272727, 0.420827318078432e-1)],
            r2: 0.993348115299335,
            residual_std: 0.369274472937998,
            goal: (14.9, 14.8),
        },
        Set {
            name: "Filip",
            rows: single(FILIP_X),
            degree: 10,
            intercept: true,
            response: FILIP_Y.to_vec(),
            certified: vec![
                (-1467.48961422980, 298.084530995537),
                (-2772.17959193342, 559.779865474950),
                (-2316.37108160893, 466.477572127796),
                (-1127.97394098372, 227.204274477751),
                (-354.478233703349, 71.6478660875927),
                (-75.1242017393757, 15.2897178747400),
                (-10.8753180355343, 2.23691159816033),
                (-1.06221498588947, 0.221624321934227),
                (-0.670191154593408e-1, 0.142363763154724e-1),
                (-0.246781078275479e-2, 0.535617408889821e-3),
                (-0.402962525080404e-4, 0.896632837373868e-5),
            ],
            r2: 0.996727416185620,
            residual_std: 0.334801051324544e-2,
            goal: (13.9, 14.7),
        },
        Set {
            name: "Longley",
            rows: LONGLEY.iter().map(|row| row[..6].to_vec()).collect(),
            degree: 1,
            intercept: true,
            response: LONGLEY.iter().map(|row| row[6]).collect(),
            certified: vec![
                (-3482258.63459582, 890420.383607373),
                (15.0618722713733, 84.9149257747669),
                (-0.358191792925910e-1, 0.334910077722432e-1),
                (-2.02022980381683, 0.488399681651699),
                (-1.03322686717359, 0.214274163161675),
                (-0.511041056535807e-1, 0.226073200069370),
                (1829.15146461355, 455.478499142212),
            ],
            r2: 0.995479004577296,
            residual_std: 304.854073561965,
            goal: (14.5, 14.8),
        },
        Set {
            name: "Wampler1",
            rows: upto(0, 20),
            degree: 5,
            intercept: true,
            response: wampler(1.0, 0.0),
            certified: vec![
                (1.00000000000000, 0.000000000000000),
                (1.00000000000000, 0.000000000000000),
                (1.00000000000000, 0.000000000000000),
                (1.00000000000000, 0.000000000000000),
                (1.00000000000000, 0.000000000000000),
                (1.00000000000000, 0.000000000000000),
            ],
            r2: 1.00000000000000,
            residual_std: 0.000000000000000,
            goal: (14.9, 14.9),
        },
        Set {
            name: "Wampler2",
            rows: upto(0, 20),
            degree: 5,
            intercept: true,
            response: wampler(0.1, 0.0),
            certified: vec![
                (1.00000000000000, 0.000000000000000),
                (0.100000000000000, 0.000000000000000),
                (0.100000000000000e-1, 0.000000000000000),
                (0.100000000000000e-2, 0.000000000000000),
                (0.100000000000000e-3, 0.000000000000000),
                (0.100000000000000e-4, 0.000000000000000),
            ],
            r2: 1.00000000000000,
            residual_std: 0.000000000000000,
            goal: (13.1, 14.9),
        },
        Set {
            name: "Wampler3",
            rows: upto(0, 20),
            degree: 5,
            intercept: true,
            response: wampler(1.0, 1.0),
            certified: vec![
                (1.00000000000000, 2152.32624678170),
                (1.00000000000000, 2363.55173469681),
                (1.00000000000000, 779.343524331583),
                (1.00000000000000, 101.475507550350),
                (1.00000000000000, 5.64566512170752),
                (1.00000000000000, 0.112324854679312),
            ],
            r2: 0.999995559025820,
            residual_std: 2360.14502379268,
            goal: (14.9, 14.4),
        },
        Set {
            name: "Wampler4",
            rows: upto(0, 20),
            degree: 5,
            intercept: true,
            response: wampler(1.0, 100.0),
            certified: vec![
                (1.00000000000000, 215232.624678170),
                (1.00000000000000, 236355.173469681),
                (1.00000000000000, 77934.3524331583),
                (1.00000000000000, 10147.5507550350),
                (1.00000000000000, 564.566512170752),
                (1.00000000000000, 11.2324854679312),
            ],
            r2: 0.957478440825662,
            residual_std: 236014.502379268,
            goal: (14.9, 14.4),
        },
        Set {
            name: "Wampler5",
            rows: upto(0, 20),
            degree: 5,
            intercept: true,
            response: wampler(1.0, 10_000.0),
            certified: vec![
                (1.00000000000000, 21523262.4678170),
                (1.00000000000000, 23635517.3469681),
                (1.00000000000000, 7793435.24331583),
                (1.00000000000000, 1014755.07550350),
                (1.00000000000000, 56456.6512170752),
                (1.00000000000000, 1123.24854679312),
            ],
            r2: 0.224668921574940e-2,
            residual_std: 23601450.2379268,
            goal: (14.9, 14.4),
        },
    ]
}

const NORRIS_X: &[f64] = &[
    0.2, 337.4, 118.2, 884.6, 10.1, 226.5, 666.3, 996.3, 448.6, 777.0, 558.2, 0.4, 0.6, 775.5, 666.9, 338.0, 447.5, 11.6, 556.0, 228.1,
    995.8, 887.6, 120.2, 0.3, 0.3, 556.8, 339.1, 887.2, 999.0, 779.0, 11.1, 118.3, 229.2, 669.1, 448.9, 0.5,
];
const NORRIS_Y: &[f64] = &[
    0.1, 338.8, 118.1, 888.0, 9.2, 228.1, 668.5, 998.5, 449.1, 778.9, 559.2, 0.3, 0.1, 778.1, 668.8, 339.3, 448.9, 10.8, 557.7, 228.3,
    998.0, 888.8, 119.6, 0.3, 0.6, 557.6, 339.3, 888.0, 998.5, 778.9, 10.2, 117.6, 228.9, 668.4, 449.2, 0.2,
];
const PONTIUS_X: &[f64] = &[
    150000.0, 300000.0, 450000.0, 600000.0, 750000.0, 900000.0, 1050000.0, 1200000.0, 1350000.0, 1500000.0, 1650000.0, 1800000.0,
    1950000.0, 2100000.0, 2250000.0, 2400000.0, 2550000.0, 2700000.0, 2850000.0, 3000000.0, 150000.0, 300000.0, 450000.0, 600000.0,
    750000.0, 900000.0, 1050000.0, 1200000.0, 1350000.0, 1500000.0, 1650000.0, 1800000.0, 1950000.0, 2100000.0, 2250000.0, 2400000.0,
    2550000.0, 2700000.0, 2850000.0, 3000000.0,
];
const PONTIUS_Y: &[f64] = &[
    0.11019, 0.21956, 0.32949, 0.43899, 0.54803, 0.65694, 0.76562, 0.87487, 0.98292, 1.09146, 1.20001, 1.30822, 1.41599, 1.52399, 1.63194,
    1.73947, 1.84646, 1.95392, 2.06128, 2.16844, 0.11052, 0.22018, 0.32939, 0.43886, 0.54798, 0.65739, 0.76596, 0.87474, 0.98300, 1.09150,
    1.20004, 1.30818, 1.41613, 1.52408, 1.63159, 1.73965, 1.84696, 1.95445, 2.06177, 2.16829,
];
const FILIP_X: &[f64] = &[
    -6.860120914,
    -4.324130045,
    -4.358625055,
    -4.358426747,
    -6.955852379,
    -6.661145254,
    -6.355462942,
    -6.118102026,
    -7.115148017,
    -6.815308569,
    -6.519993057,
    -6.204119983,
    -5.853871964,
    -6.109523091,
    -5.79832982,
    -5.482672118,
    -5.171791386,
    -4.851705903,
    -4.517126416,
    -4.143573228,
    -3.709075441,
    -3.499489089,
    -6.300769497,
    -5.953504836,
    -5.642065153,
    -5.031376979,
    -4.680685696,
    -4.329846955,
    -3.928486195,
    -8.56735134,
    -8.363211311,
    -8.107682739,
    -7.823908741,
    -7.522878745,
    -7.218819279,
    -6.920818754,
    -6.628932138,
    -6.323946875,
    -5.991399828,
    -8.781464495,
    -8.663140179,
    -8.473531488,
    -8.247337057,
    -7.971428747,
    -7.676129393,
    -7.352812702,
    -7.072065318,
    -6.774174009,
    -6.478861916,
    -6.159517513,
    -6.835647144,
    -6.53165267,
    -6.224098421,
    -5.910094889,
    -5.598599459,
    -5.290645224,
    -4.974284616,
    -4.64454848,
    -4.290560426,
    -3.885055584,
    -3.408378962,
    -3.13200249,
    -8.726767166,
    -8.66695597,
    -8.511026475,
    -8.165388579,
    -7.886056648,
    -7.588043762,
    -7.283412422,
    -6.995678626,
    -6.691862621,
    -6.392544977,
    -6.067374056,
    -6.684029655,
    -6.378719832,
    -6.065855188,
    -5.752272167,
    -5.132414673,
    -4.811352704,
    -4.098269308,
    -3.66174277,
    -3.2644011,
];
const FILIP_Y: &[f64] = &[
    0.8116, 0.9072, 0.9052, 0.9039, 0.8053, 0.8377, 0.8667, 0.8809, 0.7975, 0.8162, 0.8515, 0.8766, 0.8885, 0.8859, 0.8959, 0.8913, 0.8959,
    0.8971, 0.9021, 0.909, 0.9139, 0.9199, 0.8692, 0.8872, 0.89, 0.891, 0.8977, 0.9035, 0.9078, 0.7675, 0.7705, 0.7713, 0.7736, 0.7775,
    0.7841, 0.7971, 0.8329, 0.8641, 0.8804, 0.7668, 0.7633, 0.7678, 0.7697, 0.77, 0.7749, 0.7796, 0.7897, 0.8131, 0.8498, 0.8741, 0.8061,
    0.846, 0.8751, 0.8856, 0.8919, 0.8934, 0.894, 0.8957, 0.9047, 0.9129, 0.9209, 0.9219, 0.7739, 0.7681, 0.7665, 0.7703, 0.7702, 0.7761,
    0.7809, 0.7961, 0.8253, 0.8602, 0.8809, 0.8301, 0.8664, 0.8834, 0.8898, 0.8964, 0.8963, 0.9074, 0.9119, 0.9228,
];
const LONGLEY: &[[f64; 7]] = &[
    [83.0, 234289.0, 2356.0, 1590.0, 107608.0, 1947.0, 60323.0],
    [88.5, 259426.0, 2325.0, 1456.0, 108632.0, 1948.0, 61122.0],
    [88.2, 258054.0, 3682.0, 1616.0, 109773.0, 1949.0, 60171.0],
    [89.5, 284599.0, 3351.0, 1650.0, 110929.0, 1950.0, 61187.0],
    [96.2, 328975.0, 2099.0, 3099.0, 112075.0, 1951.0, 63221.0],
    [98.1, 346999.0, 1932.0, 3594.0, 113270.0, 1952.0, 63639.0],
    [99.0, 365385.0, 1870.0, 3547.0, 115094.0, 1953.0, 64989.0],
    [100.0, 363112.0, 3578.0, 3350.0, 116219.0, 1954.0, 63761.0],
    [101.2, 397469.0, 2904.0, 3048.0, 117388.0, 1955.0, 66019.0],
    [104.6, 419180.0, 2822.0, 2857.0, 118734.0, 1956.0, 67857.0],
    [108.4, 442769.0, 2936.0, 2798.0, 120445.0, 1957.0, 68169.0],
    [110.8, 444546.0, 4681.0, 2637.0, 121950.0, 1958.0, 66513.0],
    [112.6, 482704.0, 3813.0, 2552.0, 123366.0, 1959.0, 68655.0],
    [114.2, 502601.0, 3931.0, 2514.0, 125368.0, 1960.0, 69564.0],
    [115.7, 518173.0, 4806.0, 2572.0, 127852.0, 1961.0, 69331.0],
    [116.9, 554894.0, 4007.0, 2827.0, 130081.0, 1962.0, 70551.0],
];
/// How Wampler3 departs from its polynomial; Wampler4 and 5 do 100 and 10,000 times as far.
const WAMPLER_ERRORS: &[f64] = &[
    759.0, -2048.0, 2048.0, -2048.0, 2523.0, -2048.0, 2048.0, -2048.0, 1838.0, -2048.0, 2048.0, -2048.0, 1838.0, -2048.0, 2048.0, -2048.0,
    2523.0, -2048.0, 2048.0, -2048.0, 759.0,
];
