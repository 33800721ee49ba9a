//! Classifiers through HTTP: labels and scores are those of the fits of the indicators one by one, in every dialect and as rows are learnt and
//! unlearnt; probabilities are those of held-out rows.

use arrow_array::cast::AsArray as _;
use arrow_array::types::Float64Type;
use serde_json::{Value, json};

use crate::client::{Noise, Server, agree, coefficients, numbers};

const CLASSES: [&str; 3] = ["maple", "oak", "pine"];
const ARROW: &str = "application/vnd.apache.arrow.stream";

/// Rows of two numbers about the centre of their class, so that classes overlap, and whether the first number is above 0.4.
fn rows(count: usize, seed: u64) -> Vec<Value> {
    let mut noise = Noise(seed);
    let centres = [[0.0, 0.0], [1.0, 0.2], [0.3, 1.1]];
    (0..count)
        .map(|_| {
            let class = ((noise.next() + 1.0) * 1.5) as usize;
            let (x, z) = (centres[class][0] + 0.7 * noise.next(), centres[class][1] + 0.7 * noise.next());
            json!({"x": x, "z": z, "tree": CLASSES[class], "big": x + 0.3 * noise.next() > 0.4, "w": 1.0 + 0.5 * noise.next()})
        })
        .collect()
}

fn csv(rows: &[Value]) -> String {
    let line = |row: &Value| {
        let indicators: Vec<String> = CLASSES.iter().map(|class| u8::from(row["tree"] == *class).to_string()).collect();
        format!("{},{},{},{},{},{}\n", row["x"], row["z"], row["tree"].as_str().unwrap(), row["big"], row["w"], indicators.join(","))
    };
    std::iter::once("x,z,tree,big,w,maple,oak,pine\n".to_owned()).chain(rows.iter().map(line)).collect()
}

/// Some members of rows.
fn only(rows: &[Value], members: &[&str]) -> Value {
    let one = |row: &Value| members.iter().map(|member| ((*member).to_owned(), row[*member].clone())).collect::<serde_json::Map<_, _>>();
    rows.iter().map(|row| Value::Object(one(row))).collect()
}

fn fitted(target: &str, with: Value) -> Value {
    let mut asked = json!({"dataset": "t", "target": target, "features": ["x", "z"]});
    asked.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
    asked
}

async fn server() -> (Server, Vec<Value>) {
    let server = Server::start().await;
    let rows = rows(300, 5);
    server.table("t", &csv(&rows)).await;
    (server, rows)
}

async fn document(server: &Server, model: &str) -> Value {
    server.get(format!("/v1/models/{model}")).expect(200).await.json()
}

/// Scores or probabilities, row by row in the order of the classes.
fn by_class(list: &Value) -> Vec<[f64; 3]> {
    list.as_array().unwrap().iter().map(|row| CLASSES.map(|class| row[class].as_f64().unwrap())).collect()
}

fn largest(scores: &[f64]) -> usize {
    (0..scores.len()).rev().max_by(|one, other| scores[*one].total_cmp(&scores[*other])).unwrap()
}

fn labels(scores: &[[f64; 3]]) -> Value {
    scores.iter().map(|scores| CLASSES[largest(scores)]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_classifier_is_the_fit_of_its_indicators() {
    let (server, rows) = server().await;
    let asked = json!({"rows": only(&rows[..40], &["x", "z"]), "interval": {"kind": "confidence", "level": 0.9}, "explain": true});
    for with in [
        json!({}),
        json!({"estimator": {"kind": "ridge", "penalty": 3}}),
        json!({"estimator": {"kind": "ridge", "penalty": "auto"}}),
        json!({"weights": "w", "covariance": "hc1"}),
        json!({"intercept": false}),
        json!({"estimator": {"kind": "lasso", "penalty": 0.01}}),
        json!({"estimator": {"kind": "gradient", "tolerance": 1e-12, "epochs": 20000}}),
        json!({"features": ["x", {"columns": ["x", "z"], "as": "random_fourier", "components": 20}], "estimator": {"kind": "ridge", "penalty": 0.1}}),
    ] {
        let version = server.fit("tree", fitted("tree", with.clone())).await;
        let mut indicators = fitted("tree", with.clone());
        indicators["target"] = json!(CLASSES);
        let numbers = server.fit("numbers", indicators).await;
        assert_eq!((&version["target"], &version["classes"]), (&json!(["tree"]), &json!(CLASSES)), "{with}");
        assert_eq!(version["coefficients"], numbers["coefficients"], "{with}");
        let (labelled, scored) = (server.predict("tree", asked.clone()).await, server.predict("numbers", asked.clone()).await);
        assert_eq!(labelled["scores"], scored["predictions"], "{with}");
        for member in ["lower", "upper", "leverage", "extrapolates", "contributions"] {
            assert_eq!(labelled[member], scored[member], "{with}");
        }
        assert_eq!(labelled["predictions"], labels(&by_class(&labelled["scores"])));
        assert_eq!(labelled["probabilities"], Value::Null, "not calibrated");
        // Accuracy on the training rows, by weight.
        let all = server.predict("tree", json!({"rows": only(&rows, &["x", "z"])})).await;
        let weight = |row: &Value| if with["weights"].is_null() { 1.0 } else { row["w"].as_f64().unwrap() };
        let right = rows.iter().zip(all["predictions"].as_array().unwrap()).filter(|(row, label)| row["tree"] == **label);
        let share = right.map(|(row, _)| weight(row)).sum::<f64>() / rows.iter().map(weight).sum::<f64>();
        agree(&[version["fit"]["accuracy"].as_f64().unwrap()], &[share], 12.0);
        assert!(share > 0.6, "{share}");
    }
    // A regression says nothing of classes.
    let version = document(&server, "numbers").await;
    assert_eq!((&version["classes"], &version["calibration"], version["fit"].get("accuracy")), (&Value::Null, &Value::Null, None));
    let answer = server.predict("numbers", json!({"rows": []})).await;
    assert!(answer.get("scores").is_none() && answer.get("probabilities").is_none());
    let text = server.get("/v1/models/tree").header("accept", "text/plain").expect(200).await.text();
    assert!(text.contains("accuracy on the training rows 0.") && text.contains("class oak"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn booleans_are_labels_too() {
    let (server, rows) = server().await;
    let version = server.fit("big", fitted("big", json!({"validation": {"kind": "kfold"}}))).await;
    assert_eq!(version["classes"], json!([false, true]));
    assert_eq!(version["validation"]["classes"][1]["class"], true);
    let asked = json!({"rows": only(&rows[..20], &["x", "z"])});
    let answer = server.predict("big", asked.clone()).await;
    for (label, scores) in answer["predictions"].as_array().unwrap().iter().zip(answer["scores"].as_array().unwrap()) {
        assert_eq!(*label, json!(scores["true"].as_f64().unwrap() > scores["false"].as_f64().unwrap()));
        agree(&[scores["true"].as_f64().unwrap() + scores["false"].as_f64().unwrap()], &[1.0], 12.0);
    }
    let learnt = server.learn("big", json!({"rows": only(&rows[..20], &["x", "z", "big"])})).await;
    assert_eq!(learnt["predictions"].as_array().unwrap().len(), 20);
    assert!(learnt["predictions"].as_array().unwrap().iter().all(Value::is_boolean));
    let ids = server.predict("big", json!({"rows": only(&rows[..2], &["x", "z"]), "remember": true})).await["prediction_ids"].clone();
    for value in [json!("true"), json!(1), json!({"big": 1})] {
        let body = json!({"labels": [{"prediction_id": ids[0], "value": value}]});
        assert_eq!(server.post("/v1/models/big/labels").json(&body).refused(422, "invalid_request").await.pointers(), ["/labels/0/value"]);
    }
    server.post("/v1/models/big/labels").json(&json!({"labels": [{"prediction_id": ids[0], "value": true}]})).expect(200).await;
    let text = server.post("/v1/models/big/predict?fields=predictions").csv("x,z\n-5,0\n5,0\n").expect(200).await.text();
    assert_eq!(text, "prediction\nfalse\ntrue\n");
    let described = server.get("/v2/models/big").expect(200).await.json();
    assert_eq!(described["outputs"][0], json!({"name": "predict", "datatype": "BOOL", "shape": [-1]}));
    let tensor = json!({"inputs": [{"name": "input", "shape": [2, 2], "datatype": "FP64", "data": [-5, 0, 5, 0]}],
        "outputs": [{"name": "predict", "parameters": {"binary_data": true}}]});
    let reply = server.post("/v2/models/big/infer").json(&tensor).expect(200).await;
    assert_eq!(reply.body[reply.header("inference-header-content-length").unwrap().parse().unwrap()..], [0, 1]);
    server.post("/v1/models/big/predictions").json(&json!({"dataset": "t", "into": "said", "fields": ["predictions"]})).expect(201).await;
    assert_eq!(server.get("/v1/datasets/said").expect(200).await.json()["columns"][0]["type"], "boolean");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_dialect_gives_the_same_labels() {
    let (server, rows) = server().await;
    server.fit("tree", fitted("tree", json!({"estimator": {"kind": "ridge", "penalty": 1}, "calibration": "temperature"}))).await;
    let asked = &rows[..30];
    let wanted = server.predict("tree", json!({"rows": only(asked, &["x", "z"])})).await;
    let label = |row: usize| wanted["predictions"][row].as_str().unwrap();
    let (scores, chances) = (by_class(&wanted["scores"]), by_class(&wanted["probabilities"]));
    assert!(chances.iter().all(|chances| (chances.iter().sum::<f64>() - 1.0).abs() < 1e-12));
    let cells: Vec<[f64; 2]> = asked.iter().map(|row| [row["x"].as_f64().unwrap(), row["z"].as_f64().unwrap()]).collect();
    let data = json!(cells);
    assert_eq!(server.predict("tree", json!({"columns": ["x", "z"], "data": data})).await, wanted);

    let lines: String = cells.iter().map(|cells| format!("{},{}\n", cells[0], cells[1])).collect();
    let text = server.post("/v1/models/tree/predict").csv(&format!("x,z\n{lines}")).expect(200).await.text();
    let mut table = text.lines();
    let names = "prediction,maple_score,oak_score,pine_score,maple_probability,oak_probability,pine_probability,leverage,extrapolates";
    assert_eq!(table.next(), Some(names));
    for (row, line) in table.enumerate() {
        let found: Vec<&str> = line.split(',').collect();
        let figures: Vec<f64> = found[1..7].iter().map(|cell| cell.parse().unwrap()).collect();
        assert_eq!((found[0], &figures[..3], &figures[3..]), (label(row), &scores[row][..], &chances[row][..]));
    }

    let lines: String = asked.iter().map(|row| format!("{}\n", only(std::slice::from_ref(row), &["x", "z"])[0])).collect();
    let text = server.post("/v1/models/tree/predict?fields=predictions,scores").ndjson(&lines).expect(200).await.text();
    for (row, line) in text.lines().enumerate() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line, json!({"prediction": label(row), "scores": wanted["scores"][row]}));
    }

    let batch = arrow(&server, "/v1/models/tree/predict", &cells).await;
    let texts = batch.column_by_name("prediction").unwrap().as_string::<i32>();
    let pine = batch.column_by_name("pine_probability").unwrap().as_primitive::<Float64Type>();
    for (row, chances) in chances.iter().enumerate() {
        assert_eq!((texts.value(row), pine.value(row)), (label(row), chances[2]));
    }

    let predictions = &wanted["predictions"];
    let split = json!({"dataframe_split": {"columns": ["x", "z"], "data": data}});
    assert_eq!(server.post("/v1/models/tree/invocations").json(&split).expect(200).await.json()["predictions"], *predictions);
    let served = |asked: Value| server.post("/v1/models/tree:predict").json(&asked);
    assert_eq!(served(json!({"instances": data})).expect(200).await.json()["predictions"], *predictions);
    assert_eq!(served(json!({"inputs": data})).expect(200).await.json()["outputs"], *predictions);

    let tensor = json!({"name": "input", "shape": [30, 2], "datatype": "FP64", "data": data});
    let outputs = json!([{"name": "predict"}, {"name": "scores"}, {"name": "probabilities"}, {"name": "std_error"}]);
    let reply = server.post("/v2/models/tree/infer").json(&json!({"inputs": [tensor], "outputs": outputs})).expect(200).await.json();
    let [labels, flat, likely, error] = [0, 1, 2, 3].map(|place| &reply["outputs"][place]);
    assert_eq!((&labels["datatype"], &labels["shape"], &labels["data"]), (&json!("BYTES"), &json!([30]), predictions));
    assert_eq!((&flat["datatype"], &flat["shape"], numbers(&flat["data"])), (&json!("FP64"), &json!([30, 3]), scores.concat()));
    assert_eq!(numbers(&likely["data"]), chances.concat());
    assert!(numbers(&error["data"]).iter().all(|error| *error > 0.0), "of confidence, of which alone there is one");
    let binary = json!({"inputs": [tensor], "parameters": {"binary_data_output": true}});
    let reply = server.post("/v2/models/tree/infer").json(&binary).expect(200).await;
    let mut bytes = &reply.body[reply.header("inference-header-content-length").unwrap().parse().unwrap()..];
    for row in 0..30 {
        let (length, rest) = bytes.split_at(4);
        let (text, rest) = rest.split_at(u32::from_le_bytes(length.try_into().unwrap()) as usize);
        assert_eq!(text, label(row).as_bytes());
        bytes = rest;
    }
    assert!(bytes.is_empty());

    let into = json!({"dataset": "t", "into": "said", "columns": ["tree"]});
    let made = server.post("/v1/models/tree/predictions").json(&into).expect(201).await.json();
    assert_eq!((&made["columns"][1]["name"], &made["columns"][1]["type"]), (&json!("prediction"), &json!("category")));
    let stored = server.get("/v1/datasets/said/rows?limit=30").expect(200).await.json();
    for (row, stored) in stored["items"].as_array().unwrap().iter().enumerate() {
        assert_eq!((&stored["prediction"], &stored["oak_score"]), (&wanted["predictions"][row], &json!(scores[row][1])));
    }
}

/// The answers to rows of x and z.
async fn arrow(server: &Server, path: &str, cells: &[[f64; 2]]) -> arrow_array::RecordBatch {
    let column = |place: usize| std::sync::Arc::new(cells.iter().map(|cells| cells[place]).collect::<arrow_array::Float64Array>());
    let batch = arrow_array::RecordBatch::try_from_iter([("x", column(0) as arrow_array::ArrayRef), ("z", column(1))]).unwrap();
    let mut writer = arrow_ipc::writer::StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    let body = writer.into_inner().unwrap();
    let reply = server.post(path).typed(ARROW, body).expect(200).await;
    arrow_ipc::reader::StreamReader::try_new(&reply.body[..], None).unwrap().next().unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn held_out_rows_judge_labels_and_probabilities() {
    let (server, rows) = server().await;
    for (plan, with) in [
        (json!({"kind": "kfold", "folds": 4, "seed": 3}), json!({})),
        (json!({"kind": "loo"}), json!({})),
        (json!({"kind": "holdout", "fraction": 0.4}), json!({"weights": "w"})),
        (json!({"kind": "time", "column": "w", "folds": 3}), json!({})),
        (json!({"kind": "kfold"}), json!({"features": [{"column": "x", "as": "standardise"}, "z"], "estimator": {"kind": "gradient"}})),
    ] {
        let mut temperatures = Vec::new();
        for calibration in [Value::Null, json!("temperature"), json!("isotonic")] {
            let mut asked = fitted("tree", with.clone());
            (asked["validation"], asked["calibration"]) = (plan.clone(), calibration.clone());
            let version = server.fit("tree", asked).await;
            let found = &version["validation"];
            let confusion: Vec<Vec<f64>> = found["confusion"].as_array().unwrap().iter().map(numbers).collect();
            let (all, right) = (confusion.concat().iter().sum::<f64>(), (0..3).map(|place| confusion[place][place]).sum::<f64>());
            assert_eq!(found["pooled"]["rows"].as_f64(), Some(all), "{plan}");
            if with["weights"].is_null() {
                agree(&[found["pooled"]["accuracy"].as_f64().unwrap()], &[right / all], 12.0);
            }
            let recall = found["classes"][1]["recall"].as_f64().unwrap();
            agree(&[recall], &[confusion[1][1] / confusion[1].iter().sum::<f64>()], 12.0);
            let precision = found["classes"][2]["precision"].as_f64().unwrap();
            agree(&[precision], &[confusion[2][2] / confusion.iter().map(|row| row[2]).sum::<f64>()], 12.0);
            let folds = [("kfold", plan["folds"].as_u64().unwrap_or(5)), ("holdout", 1), ("time", 3)];
            let folds = folds.iter().find(|(kind, _)| plan["kind"] == *kind).map_or(0, |(_, folds)| *folds);
            assert_eq!(found["folds"].as_array().unwrap().len() as u64, folds, "{plan}");
            if calibration.is_null() {
                assert_eq!((&found["log_loss"], &version["calibration"]), (&Value::Null, &Value::Null));
                continue;
            }
            assert_eq!(version["calibration"]["kind"], calibration);
            // Better than to say that each class is as likely as another; curves of few rows may be too sure of themselves.
            let loss = found["log_loss"]["mean"].as_f64().unwrap();
            assert!(loss > 0.1 && (loss < 3f64.ln() || calibration == "isotonic"), "{plan} {calibration}: {loss}");
            temperatures.extend(version["calibration"]["temperature"].as_f64());
            let answer = server.predict("tree", json!({"rows": only(&rows, &["x", "z"])})).await;
            let (scores, chances) = (by_class(&answer["scores"]), by_class(&answer["probabilities"]));
            assert!(chances.iter().all(|chances| (chances.iter().sum::<f64>() - 1.0).abs() < 1e-12));
            if let Some(temperature) = version["calibration"]["temperature"].as_f64() {
                for (scores, chances) in scores.iter().zip(&chances) {
                    let weights = scores.map(|score| (score / temperature).exp());
                    agree(chances, &weights.map(|weight| weight / weights.iter().sum::<f64>()), 12.0);
                    assert_eq!(largest(chances), largest(scores), "a temperature leaves labels as they are");
                }
            } else {
                let chance = |class: usize, score: f64| {
                    let curve = &version["calibration"]["curves"][class];
                    let (knots, values) = (numbers(&curve["scores"]), numbers(&curve["probabilities"]));
                    let above = knots.iter().position(|knot| *knot > score).unwrap_or(knots.len());
                    match above {
                        0 => values[0],
                        above if above == knots.len() => values[above - 1],
                        above => {
                            let share = (score - knots[above - 1]) / (knots[above] - knots[above - 1]);
                            values[above - 1] + share * (values[above] - values[above - 1])
                        }
                    }
                };
                for (scores, chances) in scores.iter().zip(&chances) {
                    let raw = [0, 1, 2].map(|class| chance(class, scores[class]));
                    let total: f64 = raw.iter().sum();
                    agree(chances, &raw.map(|raw| if total > 0.0 { raw / total } else { 1.0 / 3.0 }), 12.0);
                }
            }
        }
        assert!(temperatures[0] > 0.02 && temperatures[0] < 1.0, "{plan}: {temperatures:?}");
    }
    // Where nothing is said of held-out rows, there are five folds.
    let version = server.fit("tree", fitted("tree", json!({"calibration": "isotonic"}))).await;
    assert_eq!(version["validation"]["plan"], json!({"kind": "kfold", "folds": 5, "seed": 1}));
}

#[tokio::test(flavor = "multi_thread")]
async fn learning_is_that_of_the_indicators_and_unlearning_leaves_no_trace() {
    let (mut server, _) = server().await;
    let more = rows(120, 17);
    let learning = ["x", "z", "tree"];
    for with in [
        json!({"estimator": {"kind": "ridge", "penalty": 2}}),
        json!({"online": {"forgetting_factor": 0.98}}),
        json!({"online": {"window": 80}}),
        json!({"online": {"adaptive": true, "drift": {"action": "reset"}}, "weights": "w"}),
    ] {
        let weighted = !with["weights"].is_null();
        let members: Vec<&str> = if weighted { vec!["x", "z", "tree", "w"] } else { learning.to_vec() };
        for model in ["tree", "never"] {
            server.fit(model, fitted("tree", with.clone())).await;
        }
        let mut indicators = fitted("tree", with.clone());
        indicators["target"] = json!(CLASSES);
        server.fit("numbers", indicators).await;
        let mut names = vec!["x", "z", "maple", "oak", "pine"];
        names.extend(weighted.then_some("w"));
        let (mut wrong, mut first) = (Vec::new(), Vec::new());
        for chunk in more.chunks(7) {
            let before = server.predict("numbers", json!({"rows": only(&chunk[..1], &["x", "z"])})).await;
            let learnt = server.learn("tree", json!({"rows": only(chunk, &members)})).await;
            first.push((learnt["predictions"][0].clone(), labels(&by_class(&before["predictions"]))[0].clone()));
            for ((row, label), error) in
                chunk.iter().zip(learnt["predictions"].as_array().unwrap()).zip(learnt["errors"].as_array().unwrap())
            {
                assert_eq!(error.as_f64(), Some(f64::from(u8::from(row["tree"] != *label))));
                wrong.push(error.as_f64().unwrap());
            }
            let rows: Vec<Value> = chunk
                .iter()
                .map(|row| {
                    let mut row = row.clone();
                    for class in CLASSES {
                        row[class] = json!(u8::from(row["tree"] == class));
                    }
                    row
                })
                .collect();
            server.learn("numbers", json!({"rows": only(&rows, &names)})).await;
        }
        assert!(first.iter().all(|(label, wanted)| label == wanted), "a row is predicted before it is learnt: {first:?}");
        let (tree, numbers) = (document(&server, "tree").await, document(&server, "numbers").await);
        assert_eq!((&tree["coefficients"], &tree["sequence"]), (&numbers["coefficients"], &json!(120)), "{with}");
        assert_eq!(tree["fit"]["accuracy"], Value::Null, "the rows fitted on are not at hand any more");
        let online = server.get("/v1/models/tree/online").expect(200).await.json();
        let share = 1.0 - wrong.iter().sum::<f64>() / 120.0;
        agree(&[online["prequential"]["accuracy"].as_f64().unwrap()], &[share], 12.0);
        assert_eq!(online["prequential"]["window"]["accuracy"], online["prequential"]["accuracy"]);
        assert_eq!(online["prequential"]["targets"][1]["target"], "oak");

        // Replayed, it is the same to the last bit.
        server.restart().await;
        assert_eq!(document(&server, "tree").await, tree, "{with}");
        assert_eq!(server.get("/v1/models/tree/online").expect(200).await.json(), online);

        // The tenth row, unlearnt, was never there.
        server.delete("/v1/models/tree/updates/10").expect(200).await;
        let rest: Vec<Value> = more.iter().enumerate().filter(|(place, _)| *place != 9).map(|(_, row)| row.clone()).collect();
        server.learn("never", json!({"rows": only(&rest, &members)})).await;
        let (tree, never) = (document(&server, "tree").await, document(&server, "never").await);
        assert_eq!(tree["coefficients"], never["coefficients"], "{with}");
        let at = server.predict("tree", json!({"rows": only(&more[..3], &["x", "z"]), "at": {"sequence": 30}})).await;
        assert_eq!(at["sequence"], 30);
    }
    let metrics = server.get("/metrics").expect(200).await.text();
    assert!(metrics.contains("lsqd_model_accuracy{model=\"tree\"} 0.") && !metrics.contains("lsqd_model_rmse{model=\"tree\""));
    let poll = async |path: String| server.get(path).header("accept", "application/json").expect(200).await.json();
    let next = poll("/v1/models/tree/events".to_owned()).await["next"].as_str().unwrap().to_owned();
    server.learn("tree", json!({"rows": only(&more[..2], &["x", "z", "tree", "w"])})).await;
    let told = poll(format!("/v1/models/tree/events?after={next}")).await["items"][0]["data"].clone();
    assert!(told["accuracy"].is_number() && told.get("rmse").is_none(), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn delayed_labels_are_classes() {
    let (mut server, rows) = server().await;
    for model in ["tree", "other"] {
        server.fit(model, fitted("tree", json!({}))).await;
    }
    let answer = server.predict("tree", json!({"rows": only(&rows[..3], &["x", "z"]), "remember": true})).await;
    let ids = answer["prediction_ids"].clone();
    server.restart().await;
    let path = "/v1/models/tree/labels";
    for value in [json!(1), json!(true), json!("birch"), json!({"tree": 1})] {
        let body = json!({"labels": [{"prediction_id": ids[0], "value": "oak"}, {"prediction_id": ids[1], "value": value}]});
        let refused = server.post(path).json(&body).refused(422, "invalid_request").await;
        assert_eq!(refused.pointers(), ["/labels/1/value"]);
        assert!(!refused.text().contains("birch"));
    }
    let given: Vec<Value> =
        rows[..3].iter().enumerate().map(|(place, row)| json!({"prediction_id": ids[place], "value": row["tree"]})).collect();
    let body = json!({"labels": given});
    let reply = server.post(path).json(&body).expect(200).await.json();
    let mut wanted = server.learn("other", json!({"rows": only(&rows[..3], &["x", "z", "tree"])})).await;
    wanted["model"] = json!("tree");
    assert_eq!(reply, wanted);
    let again = server.post(path).json(&body).expect(200).await.json();
    assert_eq!((&again["accepted"], &again["predictions"]), (&json!(0), &reply["predictions"]));
    // Unlearnt, nothing of its answer is left.
    server.delete("/v1/models/tree/updates/2").expect(200).await;
    let again = server.post(path).json(&body).expect(200).await.json();
    assert_eq!((&again["predictions"][1], &again["errors"][1]), (&Value::Null, &Value::Null));
    server.fit("line", json!({"dataset": "t", "target": "x", "features": ["z"]})).await;
    let ids = server.predict("line", json!({"rows": [{"z": 1}], "remember": true})).await["prediction_ids"].clone();
    let body = json!({"labels": [{"prediction_id": ids[0], "value": "oak"}]});
    let refused = server.post("/v1/models/line/labels").json(&body).refused(422, "invalid_request").await;
    assert_eq!(refused.pointers(), ["/labels/0/value"], "a class where a number belongs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pretrained_classifier_lends_its_classes() {
    let (server, rows) = server().await;
    server.fit("base", fitted("tree", json!({}))).await;
    // Two of the three classes.
    let few: Vec<Value> = rows.iter().filter(|row| row["tree"] != "pine").take(12).cloned().collect();
    server.table("few", &csv(&few)).await;
    let tuned = |strength: Value| {
        let mut asked = fitted("tree", json!({"prior": {"model": "base", "strength": strength}}));
        asked["dataset"] = json!("few");
        asked
    };
    let version = server.fit("tuned", tuned(json!(1e9))).await;
    assert_eq!(version["classes"], json!(CLASSES));
    let slopes = |version: &Value| {
        let lines = version["coefficients"].as_array().unwrap().iter().filter(|line| line["name"] != "(intercept)");
        lines.map(|line| line["estimate"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    agree(&slopes(&version), &slopes(&document(&server, "base").await), 6.0);
    assert_eq!(version["moved"].as_array().unwrap().len(), 6);
    // With its information, as if all rows had been there.
    let both: Vec<Value> = rows.iter().chain(&few).cloned().collect();
    server.table("both", &csv(&both)).await;
    let mut whole = fitted("tree", json!({}));
    whole["dataset"] = json!("both");
    let (on, whole) = (server.fit("on", tuned(json!({"kind": "information"}))).await, server.fit("whole", whole).await);
    agree(&coefficients(&on, "estimate"), &coefficients(&whole, "estimate"), 10.0);
    // What is no classifier is no prior of one.
    server.fit("numbers", fitted("x", json!({"target": CLASSES}))).await;
    let mut asked = tuned(json!(1));
    asked["prior"]["model"] = json!("numbers");
    let refused = server.post("/v1/models/tuned/fits").json(&asked).refused(422, "invalid_request").await;
    assert_eq!(refused.pointers(), ["/prior/model"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_the_dataset_are_unlearnt_and_its_classes_stay() {
    let server = Server::start().await;
    let mut rows = rows(60, 5);
    // The one row of its class.
    rows[7]["tree"] = json!("yew");
    server.table("t", &csv(&rows)).await;
    let with = json!({"estimator": {"kind": "ridge", "penalty": 2}, "calibration": "temperature"});
    let before = server.fit("tree", fitted("tree", with.clone())).await;
    assert_eq!(before["classes"], json!(["maple", "oak", "pine", "yew"]));
    server.delete("/v1/datasets/t/rows/7").expect(200).await;
    let after = document(&server, "tree").await;
    assert_eq!((&after["classes"], &after["unlearnt"]["rows"]), (&before["classes"], &json!(1)));
    assert_eq!((&after["fit"]["observations"], &after["calibration"]["kind"]), (&json!(59), &json!("temperature")));
    let yew: Vec<f64> = coefficients(&after, "estimate")[9..].to_vec();
    assert!(yew.iter().all(|estimate| estimate.abs() < 1e-12), "{yew:?}");
    let never = server.fit("never", fitted("tree", with)).await;
    agree(&coefficients(&after, "estimate")[..9], &coefficients(&never, "estimate"), 10.0);
    assert_eq!(never["classes"], json!(CLASSES));
    server.get("/v1/models/never/versions/1/diagnostics").expect(200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drift_leads_to_a_new_classifier() {
    let server = Server::start().await;
    let rows = rows(900, 9);
    server.table("t", &csv(&rows[..200])).await;
    let with = json!({"calibration": "temperature", "online": {"drift": {"detector": "page_hinkley", "threshold": 20, "action": "refit"}}});
    server.fit("tree", fitted("tree", with)).await;
    for chunk in rows[200..500].chunks(50) {
        server.post("/v1/models/tree@1/updates").json(&json!({"rows": only(chunk, &["x", "z", "tree"])})).expect(200).await;
    }
    assert_eq!(server.get("/v1/models/tree/online").expect(200).await.json()["drift"]["found"], 0);
    // From one row to the next each class is another.
    let turned: Vec<Value> = rows[500..]
        .iter()
        .map(|row| {
            let mut row = row.clone();
            let place = CLASSES.iter().position(|class| row["tree"] == *class).unwrap();
            row["tree"] = json!(CLASSES[(place + 1) % 3]);
            row
        })
        .collect();
    for chunk in turned.chunks(50) {
        server.post("/v1/models/tree@1/updates").json(&json!({"rows": only(chunk, &["x", "z", "tree"])})).expect(200).await;
    }
    let mut served = Value::Null;
    for _ in 0..500 {
        served = document(&server, "tree").await;
        if served["version"] != 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!((&served["refit"]["version"], &served["classes"]), (&json!(1), &json!(CLASSES)), "{served}");
    assert!(served["warnings"].as_array().unwrap().iter().any(|warning| warning.as_str().unwrap().contains("calibrate")));
    let refit = server.get("/v1/models/tree/versions/2").expect(200).await.json();
    assert!(refit["sequence"] != 0 || refit["fit"]["accuracy"].as_f64().unwrap() > 0.7, "{refit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_that_share_traffic_are_compared_by_their_labels() {
    let (server, rows) = server().await;
    server.fit("m", fitted("tree", json!({"features": ["x"]}))).await;
    server.fit("m", fitted("tree", json!({"serve": false}))).await;
    server.fit("m", json!({"dataset": "t", "target": ["maple", "oak", "pine"], "features": ["x"], "serve": false})).await;
    let path = "/v1/models/m/traffic";
    let refused = server.put(path).json(&json!({"split": {"1": 1, "3": 1}})).refused(422, "invalid_request").await;
    assert_eq!(refused.pointers(), ["/split/3"], "one predicts a label, and the other numbers");
    server.put(path).json(&json!({"split": {"1": 1}, "shadow": ["2"]})).expect(201).await;
    let asked = json!({"rows": only(&rows[..100], &["x", "z"]), "remember": true});
    let answer = server.predict("m", asked.clone()).await;
    let other = server.predict("m@2", json!({"rows": asked["rows"]})).await;
    let given: Vec<Value> = rows[..100]
        .iter()
        .enumerate()
        .map(|(place, row)| json!({"prediction_id": answer["prediction_ids"][place], "value": row["tree"]}))
        .collect();
    server.post("/v1/models/m/labels").json(&json!({"labels": given})).expect(200).await;
    let page = server.get(path).expect(200).await.json();
    for (place, answer) in [&answer, &other].into_iter().enumerate() {
        let pairs = rows.iter().zip(answer["predictions"].as_array().unwrap());
        let wrong = pairs.filter(|(row, label)| row["tree"] != **label).count() as f64 / 100.0;
        agree(&[page["arms"][place]["mae"].as_f64().unwrap()], &[wrong], 12.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named_and_changes_nothing() {
    let (server, rows) = server().await;
    server.table("one", "x,tree,note\n1,oak,a b\n2,oak,c d\n3,oak,e f\n").await;
    for (with, pointer) in [
        (json!({"estimator": {"kind": "huber"}}), "/estimator/kind"),
        (json!({"estimator": {"kind": "bisquare"}}), "/estimator/kind"),
        (json!({"estimator": {"kind": "lasso", "penalty": "auto"}}), "/estimator/penalty"),
        (json!({"estimator": {"kind": "elastic_net", "penalty": "auto"}}), "/estimator/penalty"),
        (json!({"target": ["x", "tree"], "features": ["z"]}), "/target/1"),
        (json!({"target": "x", "features": ["z"], "calibration": "isotonic"}), "/calibration"),
        (json!({"calibration": "platt"}), "/calibration"),
        (json!({"features": ["tree"]}), "/features/0"),
        (json!({"dataset": "one", "features": ["x"]}), "/target"),
    ] {
        let refused = server.post("/v1/models/tree/fits").json(&fitted("tree", with.clone())).refused(422, "invalid_request").await;
        assert_eq!(refused.pointers(), [pointer], "{with}");
    }
    server.get("/v1/models/tree").refused(404, "model_not_found").await;
    server.fit("tree", fitted("tree", json!({}))).await;
    let before = document(&server, "tree").await;
    let row = only(&rows[..1], &["x", "z", "tree"])[0].clone();
    for (label, pointer) in [(json!("birch"), "/rows/1/tree"), (json!(1), "/rows/1/tree"), (Value::Null, "/rows/1/tree")] {
        let mut bad = row.clone();
        bad["tree"] = label;
        let refused = server.post("/v1/models/tree/updates").json(&json!({"rows": [row, bad]})).refused(422, "invalid_rows").await;
        assert_eq!(refused.pointers(), [pointer]);
        assert!(refused.text().contains("row 2, column \\\"tree\\\"") && !refused.text().contains("birch"), "{}", refused.text());
    }
    assert_eq!(document(&server, "tree").await, before);
    let asked = json!({"rows": only(&rows[..1], &["x", "z"]), "interval": {"kind": "prediction"}});
    let refused = server.post("/v1/models/tree/predict").json(&asked).refused(422, "invalid_request").await;
    assert_eq!(refused.pointers(), ["/interval/kind"]);
    let refused = server.post("/v1/models/tree/predict?interval=prediction").csv("x,z\n1,2\n").refused(422, "invalid_request").await;
    assert_eq!(refused.pointers(), ["/interval/kind"]);
    // A table of what the model does not have is one of no columns.
    server.post("/v1/models/tree/predict?fields=probabilities").csv("x,z\n1,2\n").refused(422, "invalid_request").await;
    server.fit("line", json!({"dataset": "t", "target": "x", "features": ["z"]})).await;
    server.post("/v1/models/line/predict?fields=scores").csv("z\n2\n").refused(422, "invalid_request").await;
    let tensor = json!({"name": "input", "shape": [1, 2], "datatype": "FP64", "data": [1, 2]});
    let asked = json!({"inputs": [tensor], "outputs": [{"name": "predict"}, {"name": "probabilities"}]});
    let refused = server.post("/v2/models/tree/infer").json(&asked).expect(400).await;
    assert_eq!(refused.pointers(), ["/outputs/1/name"], "it is not calibrated");
}
