BEGIN TRANSACTION;
CREATE TABLE batches (
    sequence    INTEGER PRIMARY KEY,
    kind        TEXT NOT NULL CHECK (kind IN ('edit', 'revert')),
    created_at  TEXT NOT NULL,
    request_ids TEXT NOT NULL
);
INSERT INTO "batches" VALUES(1,'edit','2026-11-21T08:22:42.569329+00:00','["fact-0","fact-1","fact-2"]');
INSERT INTO "batches" VALUES(2,'edit','2026-11-21T08:22:42.609584+00:00','["fact-3","fact-4","fact-5"]');
INSERT INTO "batches" VALUES(3,'edit','2026-11-21T08:22:42.658153+00:00','["fact-6","fact-7","fact-8"]');
INSERT INTO "batches" VALUES(4,'revert','2026-11-21T08:22:42.722589+00:00','["fact-4","fact-7"]');
INSERT INTO "batches" VALUES(5,'edit','2026-11-21T08:22:42.768904+00:00','["fact-9","fact-10","fact-11"]');
CREATE TABLE commits (
    sequence    INTEGER PRIMARY KEY REFERENCES batches (sequence),
    version     TEXT NOT NULL,
    parent      TEXT NOT NULL,
    delta       TEXT,
    keys        TEXT,
    contexts    TEXT,
    covariance  TEXT,
    edits       INTEGER NOT NULL,
    norms       TEXT NOT NULL,
    delta_norms TEXT NOT NULL,
    seconds     REAL NOT NULL,
    at          TEXT NOT NULL
);
INSERT INTO "commits" VALUES(1,'8b4ccaabf21aa5e20b2d80fba955adca28aae1ba8e049537523b15022e29a848','4005131f93ea35e8e2f234c46c76fbe5e5ab8b74f6b8ec0059a136ecdb3eaec4','54d1dbfa18d1ad41f59930b9f106790f1e4b01536dd8b1a513495f1ff9657c20','3ae91fc24ebe6934a36518ce6aae9fdac95c00788640dc65cd18fc060ba26318','3aa4487b0d29b951bc6bd4649f6bdc388f63844e33fd07d64c670f436965051b','4dcc1fe26b4d6a6aef184d5a7a9ef4e7a816d6d9f2108f22bbf47b6d44f797af',3,'{"1":4.6553990205726485,"2":4.842208433947487}','{"1":0.32750131795517545,"2":0.6333434600175624}',3.96947799999907147139e-02,'2026-11-21T08:22:42.569329+00:00');
INSERT INTO "commits" VALUES(2,'2ac2c52e7299e2a48e77583b6fa2a1c81d4ca26fd65b42227da92f5ce5064cae','8b4ccaabf21aa5e20b2d80fba955adca28aae1ba8e049537523b15022e29a848','6cd0e1f9d095d34e9551f4692f843184137475c9e7cacb69dbdf16d2545373e3','77b5cbbbe84783680294b502445db11befffbdd3e0e27762f9a2127229386342','3aa4487b0d29b951bc6bd4649f6bdc388f63844e33fd07d64c670f436965051b','4dcc1fe26b4d6a6aef184d5a7a9ef4e7a816d6d9f2108f22bbf47b6d44f797af',6,'{"1":4.67736707159485,"2":4.875600112269679}','{"1":0.2977736780505139,"2":0.6455350051378298}',3.42370910002500750124e-02,'2026-11-21T08:22:42.609584+00:00');
INSERT INTO "commits" VALUES(3,'1ab3e299fd9aacd582afe0391c58c7ddb50949f44c4a5819b6c78431a5045689','2ac2c52e7299e2a48e77583b6fa2a1c81d4ca26fd65b42227da92f5ce5064cae','266b09da1a36041ffa35345a51d27308063c5b0f67714f3939de80a1b6d6b858','dedc18f6b958ef0e5dc4296a53b25e2c567cae2b9abaaaadcd386098be79be75','3aa4487b0d29b951bc6bd4649f6bdc388f63844e33fd07d64c670f436965051b','4dcc1fe26b4d6a6aef184d5a7a9ef4e7a816d6d9f2108f22bbf47b6d44f797af',9,'{"1":4.684493677900272,"2":4.926447937560812}','{"1":0.26486726796787596,"2":0.5772520379781323}',4.05307419969176407903e-02,'2026-11-21T08:22:42.658153+00:00');
INSERT INTO "commits" VALUES(4,'3bae6feb79f5bdb89eaa8ede5bc16c1a8303bae9b7c098043c674beeebbccf91','1ab3e299fd9aacd582afe0391c58c7ddb50949f44c4a5819b6c78431a5045689','855e7191c4bb07777dc407f780755f6ecccf88718aab0d6f893954ef903cd093','1d016399f23f7ce8fd1e79b670419071d8993d667853598a959decf9d510a02f','3aa4487b0d29b951bc6bd4649f6bdc388f63844e33fd07d64c670f436965051b','4dcc1fe26b4d6a6aef184d5a7a9ef4e7a816d6d9f2108f22bbf47b6d44f797af',9,'{"1":4.661078915319785,"2":4.874572822148716}','{"1":0.3478749792155949,"2":0.6263309782854084}',5.29614049992233049124e-02,'2026-11-21T08:22:42.722589+00:00');
INSERT INTO "commits" VALUES(5,'38d9d10a5293517e9bb0ecd1c85725fc38dbfeebf4bf4ebc92ffffb4a26b8d38','3bae6feb79f5bdb89eaa8ede5bc16c1a8303bae9b7c098043c674beeebbccf91','c8488fc768312a1bdcec527ec88cfe01959befd7400474033be75084fd8b0dc7','d7de4acc06b56519397ef96df9db0082d01d46e000f0364decaa5e9e11bbbbd4','3aa4487b0d29b951bc6bd4649f6bdc388f63844e33fd07d64c670f436965051b','4dcc1fe26b4d6a6aef184d5a7a9ef4e7a816d6d9f2108f22bbf47b6d44f797af',12,'{"1":4.691099782715816,"2":4.918688122600369}','{"1":0.3006144082741791,"2":0.5051814656012961}',3.52736029999505262821e-02,'2026-11-21T08:22:42.768904+00:00');
CREATE TABLE covariances (
    digest      TEXT PRIMARY KEY,
    source      TEXT NOT NULL,
    tokens      INTEGER NOT NULL,
    layers      TEXT NOT NULL,
    from_version TEXT NOT NULL,
    path        TEXT NOT NULL,
    at          TEXT NOT NULL
);
INSERT INTO "covariances" VALUES('4dcc1fe26b4d6a6aef184d5a7a9ef4e7a816d6d9f2108f22bbf47b6d44f797af','{"kind":"identity"}',1,'[1,2]','4005131f93ea35e8e2f234c46c76fbe5e5ab8b74f6b8ec0059a136ecdb3eaec4','covariances/4dcc1fe26b4d6a6aef184d5a7a9ef4e7a816d6d9f2108f22bbf47b6d44f797af.safetensors','2026-11-21T08:22:42.517030+00:00');
CREATE TABLE evaluations (
    number      INTEGER PRIMARY KEY,
    version     TEXT NOT NULL,
    edits       INTEGER NOT NULL,
    kind        TEXT NOT NULL,
    metrics     TEXT NOT NULL,
    at          TEXT NOT NULL
);
CREATE TABLE events (
    number      INTEGER PRIMARY KEY,
    kind        TEXT NOT NULL,
    data        TEXT NOT NULL,
    at          TEXT NOT NULL
);
INSERT INTO "events" VALUES(1,'snapshot','{"sequence":2,"version":"2ac2c52e7299e2a48e77583b6fa2a1c81d4ca26fd65b42227da92f5ce5064cae","digest":"da774ba4b7f2c1b06cff3806287795d89b2ae649fe2887d38367e90abba8fa03"}','2026-11-21T08:22:42.613499+00:00');
INSERT INTO "events" VALUES(2,'snapshot','{"sequence":4,"version":"3bae6feb79f5bdb89eaa8ede5bc16c1a8303bae9b7c098043c674beeebbccf91","digest":"6066c6a4ec65cca384d1e7b41d85fddfbee918c855524a60b791981a3564d3ba"}','2026-11-21T08:22:42.725650+00:00');
CREATE TABLE fates (
    number      INTEGER PRIMARY KEY,
    seq         INTEGER NOT NULL REFERENCES requests (seq),
    state       TEXT NOT NULL,
    sequence    INTEGER,
    reason      TEXT,
    at          TEXT NOT NULL
);
INSERT INTO "fates" VALUES(1,1,'accepted',NULL,NULL,'2026-11-21T08:22:42.523107+00:00');
INSERT INTO "fates" VALUES(2,2,'accepted',NULL,NULL,'2026-11-21T08:22:42.523581+00:00');
INSERT INTO "fates" VALUES(3,3,'accepted',NULL,NULL,'2026-11-21T08:22:42.523763+00:00');
INSERT INTO "fates" VALUES(4,4,'accepted',NULL,NULL,'2026-11-21T08:22:42.523918+00:00');
INSERT INTO "fates" VALUES(5,5,'accepted',NULL,NULL,'2026-11-21T08:22:42.524070+00:00');
INSERT INTO "fates" VALUES(6,6,'accepted',NULL,NULL,'2026-11-21T08:22:42.524238+00:00');
INSERT INTO "fates" VALUES(7,7,'accepted',NULL,NULL,'2026-11-21T08:22:42.524409+00:00');
INSERT INTO "fates" VALUES(8,8,'accepted',NULL,NULL,'2026-11-21T08:22:42.524563+00:00');
INSERT INTO "fates" VALUES(9,9,'accepted',NULL,NULL,'2026-11-21T08:22:42.524710+00:00');
INSERT INTO "fates" VALUES(10,1,'applied',1,NULL,'2026-11-21T08:22:42.569645+00:00');
INSERT INTO "fates" VALUES(11,2,'applied',1,NULL,'2026-11-21T08:22:42.569804+00:00');
INSERT INTO "fates" VALUES(12,3,'applied',1,NULL,'2026-11-21T08:22:42.569871+00:00');
INSERT INTO "fates" VALUES(13,4,'applied',2,NULL,'2026-11-21T08:22:42.609753+00:00');
INSERT INTO "fates" VALUES(14,5,'applied',2,NULL,'2026-11-21T08:22:42.609827+00:00');
INSERT INTO "fates" VALUES(15,6,'applied',2,NULL,'2026-11-21T08:22:42.609892+00:00');
INSERT INTO "fates" VALUES(16,7,'applied',3,NULL,'2026-11-21T08:22:42.658349+00:00');
INSERT INTO "fates" VALUES(17,8,'applied',3,NULL,'2026-11-21T08:22:42.658428+00:00');
INSERT INTO "fates" VALUES(18,2,'superseded',3,NULL,'2026-11-21T08:22:42.658565+00:00');
INSERT INTO "fates" VALUES(19,9,'applied',3,NULL,'2026-11-21T08:22:42.658623+00:00');
INSERT INTO "fates" VALUES(20,5,'reverted',4,'wrong (by on call)','2026-11-21T08:22:42.722808+00:00');
INSERT INTO "fates" VALUES(21,8,'reverted',4,'wrong (by on call)','2026-11-21T08:22:42.722856+00:00');
INSERT INTO "fates" VALUES(22,10,'accepted',NULL,NULL,'2026-11-21T08:22:42.729374+00:00');
INSERT INTO "fates" VALUES(23,11,'accepted',NULL,NULL,'2026-11-21T08:22:42.729546+00:00');
INSERT INTO "fates" VALUES(24,12,'accepted',NULL,NULL,'2026-11-21T08:22:42.729651+00:00');
INSERT INTO "fates" VALUES(25,10,'applied',5,NULL,'2026-11-21T08:22:42.769087+00:00');
INSERT INTO "fates" VALUES(26,11,'applied',5,NULL,'2026-11-21T08:22:42.769173+00:00');
INSERT INTO "fates" VALUES(27,12,'applied',5,NULL,'2026-11-21T08:22:42.769257+00:00');
CREATE TABLE meta (
    one         INTEGER PRIMARY KEY CHECK (one = 1),
    run_id      TEXT NOT NULL,
    base_digest TEXT NOT NULL,
    editor_digest TEXT NOT NULL,
    config      TEXT NOT NULL,
    errata_version TEXT NOT NULL,
    created_at  TEXT NOT NULL
);
INSERT INTO "meta" VALUES(1,'cf6618993de64ea6a31691ff8767deb2','580cb6180dde825f808427f9b83aff37fbbfeb82d20cbdb5dea0fc6353d1b6df','dc3a49468d0dcee3ecf42ed082a8eed64b1c538e32a210634972bf9a23f11c4f','{"name":"tiny","seed":0,"model":{"name":"tiny","dtype":"float32","parallel":null},"editor":{"type":"alphaedit","layers":[1,2],"values":{"profile":"exact","contexts":null,"lr":0.5,"steps":3,"clamp":0.75,"weight_decay":0.5,"kl_factor":0.0625,"stop_loss":0.05,"post_norm":"exact","batch_tokens":2048},"tau":5.0,"l2":10.0},"contexts":{"count":1,"length":3},"stream":{"path":"facts.jsonl","follow":false,"redis":null,"schema":"auto","target":"default","limit":null,"skip":0},"batching":{"size":3,"max_age_seconds":null,"distinct_subjects":false},"schedule":"deterministic","snapshots":{"every":2,"keep":2},"covariance":{"seed_mode":"rand","seed_tokens":1,"max_new_tokens":8,"sequences_per_unit":4,"slots":4,"server":null,"source":"identity","corpus":null,"mixture":null,"store":null,"seed":0,"tokens":150,"sequences":null,"units_per_block":1},"refresh":{"every":null,"lag":3,"model":"live","mode":"replace","ema_weight":0.5,"max_jsd":0.2},"memory":{"embedder":{"type":"hash","dim":256,"ngram":4},"index":{"exact_limit":200000,"nprobe":16,"tail_share":0.1},"scr":{"k":3,"min_similarity":0.2,"chooser":"likelihood","min_gain":0.6,"style":"auto","examples":true}},"evaluation":{"every":null,"sample":2,"arms":["base","edited","memory","edited_memory"],"max_new_tokens":3,"stop_at_newline":true,"held_out":null,"latency_questions":1},"guard":{"every":null,"sentinels":null,"held_out":null,"max_sentinel_loss":0.1,"max_perplexity_ratio":1.2,"wait":true,"pause":true,"revert":false,"webhook":null,"webhook_timeout_seconds":5.0,"webhook_retries":3},"publish":{"to":[],"every":null,"served_name":"errata","max_rank":null,"max_error":0.05,"sample":20,"min_edited":0.8,"min_untouched":0.8,"max_new_tokens":12,"timeout_seconds":60.0,"adapters":null,"adapters_on_server":null,"inplace":false},"service":{"tokens_file":null,"max_body_bytes":1048576,"max_edits_per_request":1000,"max_waiting":10000,"max_queued_calls":256,"max_queries":16,"max_questions_per_query":64,"max_answer_tokens":256,"revert_wait_seconds":20.0,"poll_seconds":0.25,"open_metrics":false},"tracking":{"uri":null,"experiment":"errata","parent":null},"ray":{"address":"local","namespace":"errata","generation":{"num_cpus":1.0,"num_gpus":0.0,"resources":{},"labels":{},"placement":"free","device":"cpu","threads":1,"nice":4},"generation_workers":1,"editor":{"num_cpus":1.0,"num_gpus":0.0,"resources":{},"labels":{},"placement":"free","device":"cpu","threads":1,"nice":0},"evaluation":{"num_cpus":1.0,"num_gpus":0.0,"resources":{},"labels":{},"placement":"free","device":"cpu","threads":1,"nice":4},"evaluation_workers":0,"retrieval":{"num_cpus":0.5,"num_gpus":0.0,"resources":{},"labels":{},"placement":"free","device":"cpu","threads":1,"nice":0},"max_revivals":5,"call_timeout_seconds":3600.0,"reserve":false,"reserve_timeout_seconds":600.0}}','0.1.0','2026-11-21T08:22:42.346910+00:00');
CREATE TABLE refreshes (
    triggered_at INTEGER PRIMARY KEY,
    from_version TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('started', 'done', 'refused', 'swapped')),
    reason      TEXT,
    covariance  TEXT,
    seconds     REAL,
    at          TEXT NOT NULL
);
CREATE TABLE requests (
    seq         INTEGER PRIMARY KEY,
    id          TEXT NOT NULL UNIQUE,
    fact_key    TEXT,
    payload     TEXT NOT NULL,
    payload_digest TEXT NOT NULL,
    accepted_at TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('accepted', 'applied', 'rejected', 'superseded', 'reverted')),
    reason      TEXT,
    applied_in  INTEGER REFERENCES batches (sequence),
    ended_in    INTEGER REFERENCES batches (sequence),
    superseded_by TEXT REFERENCES requests (id),
    result      TEXT
);
INSERT INTO "requests" VALUES(1,'fact-0','de38fce1f02a976e','{"id":"fact-0","subject":"Danielle Darrieux 0","prompt":"{} works in","target_new":"France","target_true":"Canada","relation":"place of work","statement":"Danielle Darrieux 0 works in France.","paraphrases":["The place where Danielle Darrieux 0 works is"],"portability":[{"prompt":"The capital of the land of Danielle Darrieux 0 is","answers":["Paris"]}]}','22dba4908ac2be8b7dce69989b632c544ab1cd4e8d2ca46c9d7acebb1bcf9f14','2026-11-21T08:22:42.523107+00:00','applied',NULL,1,NULL,NULL,'{"loss":5.744606018066406,"steps":3,"converged":false,"clamped":false}');
INSERT INTO "requests" VALUES(2,'fact-1','e88f3de9b3902b97','{"id":"fact-1","subject":"Alice Munro 1","prompt":"{} works in","target_new":"Canada","target_true":"Italy","relation":"place of work","statement":"Alice Munro 1 works in Canada.","paraphrases":["The place where Alice Munro 1 works is"],"portability":[{"prompt":"The capital of the land of Alice Munro 1 is","answers":["Paris"]}]}','e0fd4c0e92c2fabf209a09b22a4b356f99f47397d483b4c3a89ec51ecad917bb','2026-11-21T08:22:42.523581+00:00','superseded',NULL,1,3,'fact-7','{"loss":6.653392791748047,"steps":3,"converged":false,"clamped":true}');
INSERT INTO "requests" VALUES(3,'fact-2','3788f109beb5c41b','{"id":"fact-2","subject":"Thierry Henry 2","prompt":"{} works in","target_new":"Italy","target_true":"Angola","relation":"place of work","statement":"Thierry Henry 2 works in Italy.","paraphrases":["The place where Thierry Henry 2 works is"],"portability":[{"prompt":"The capital of the land of Thierry Henry 2 is","answers":["Paris"]}]}','8f8e2d0bfb32bcb37aa8cb0e067e72ad17dd1da399b7cdcb90b9dba36e8e09cb','2026-11-21T08:22:42.523763+00:00','applied',NULL,1,NULL,NULL,'{"loss":6.7536468505859375,"steps":3,"converged":false,"clamped":false}');
INSERT INTO "requests" VALUES(4,'fact-3','1ad43891393c2bc5','{"id":"fact-3","subject":"Danielle Darrieux 3","prompt":"{} works in","target_new":"Angola","target_true":"Rome","relation":"place of work","statement":"Danielle Darrieux 3 works in Angola.","paraphrases":["The place where Danielle Darrieux 3 works is"],"portability":[{"prompt":"The capital of the land of Danielle Darrieux 3 is","answers":["Paris"]}]}','68c393b65c1a2ca5a37362a048e6471e6685b767b97a28852dcef5638b26a3ce','2026-11-21T08:22:42.523918+00:00','applied',NULL,2,NULL,NULL,'{"loss":6.350718021392822,"steps":3,"converged":false,"clamped":false}');
INSERT INTO "requests" VALUES(5,'fact-4','0b32b87e87e158a8','{"id":"fact-4","subject":"Alice Munro 4","prompt":"{} works in","target_new":"Rome","target_true":"Paris","relation":"place of work","statement":"Alice Munro 4 works in Rome.","paraphrases":["The place where Alice Munro 4 works is"],"portability":[{"prompt":"The capital of the land of Alice Munro 4 is","answers":["Paris"]}]}','01c9f304c85ee18ce7be424d9c83fdf801febb2d5148810207f10027d36d3a8a','2026-11-21T08:22:42.524070+00:00','reverted','wrong (by on call)',2,4,NULL,'{"loss":5.87297248840332,"steps":3,"converged":false,"clamped":true}');
INSERT INTO "requests" VALUES(6,'fact-5','a27ef118a45c0834','{"id":"fact-5","subject":"Thierry Henry 5","prompt":"{} works in","target_new":"Paris","target_true":"France","relation":"place of work","statement":"Thierry Henry 5 works in Paris.","paraphrases":["The place where Thierry Henry 5 works is"],"portability":[{"prompt":"The capital of the land of Thierry Henry 5 is","answers":["Paris"]}]}','a0244ba0dfd9d168833a838e80ad24e6eca4f163ee54d339d3f635f3b7079ab9','2026-11-21T08:22:42.524238+00:00','applied',NULL,2,NULL,NULL,'{"loss":6.792377471923828,"steps":3,"converged":false,"clamped":false}');
INSERT INTO "requests" VALUES(7,'fact-6','302da21a9103c9ed','{"id":"fact-6","subject":"Danielle Darrieux 6","prompt":"{} works in","target_new":"France","target_true":"Canada","relation":"place of work","statement":"Danielle Darrieux 6 works in France.","paraphrases":["The place where Danielle Darrieux 6 works is"],"portability":[{"prompt":"The capital of the land of Danielle Darrieux 6 is","answers":["Paris"]}]}','5b80b98c21105d687ecba88f4eb07986465f21fc45a589ea1b5f0d2a183415f0','2026-11-21T08:22:42.524409+00:00','applied',NULL,3,NULL,NULL,'{"loss":5.750635147094727,"steps":3,"converged":false,"clamped":false}');
INSERT INTO "requests" VALUES(8,'fact-7','e88f3de9b3902b97','{"id":"fact-7","subject":"Alice Munro 1","prompt":"{} works in","target_new":"yes","target_true":"Italy","relation":"place of work","statement":"Alice Munro 1 works in yes.","paraphrases":["The place where Alice Munro 1 works is"],"portability":[{"prompt":"The capital of the land of Alice Munro 1 is","answers":["Paris"]}]}','679bca1a98ff778d4567a612e0183ad30664d29214e287fac1bd1c3ae457f812','2026-11-21T08:22:42.524563+00:00','reverted','wrong (by on call)',3,4,NULL,'{"loss":7.236823081970215,"steps":3,"converged":false,"clamped":true}');
INSERT INTO "requests" VALUES(9,'fact-8','964fb65714a90872','{"id":"fact-8","subject":"Thierry Henry 8","prompt":"{} works in","target_new":"Italy","target_true":"Angola","relation":"place of work","statement":"Thierry Henry 8 works in Italy.","paraphrases":["The place where Thierry Henry 8 works is"],"portability":[{"prompt":"The capital of the land of Thierry Henry 8 is","answers":["Paris"]}]}','fdc57ba2f671b8586fef0d625804e469eb04872feba6f0967bf8e3c863fc8cca','2026-11-21T08:22:42.524710+00:00','applied',NULL,3,NULL,NULL,'{"loss":6.7928643226623535,"steps":3,"converged":false,"clamped":false}');
INSERT INTO "requests" VALUES(10,'fact-9','d039fb54dc423eb3','{"id":"fact-9","subject":"Danielle Darrieux 9","prompt":"{} works in","target_new":"Angola","target_true":"Rome","relation":"place of work","statement":"Danielle Darrieux 9 works in Angola.","paraphrases":["The place where Danielle Darrieux 9 works is"],"portability":[{"prompt":"The capital of the land of Danielle Darrieux 9 is","answers":["Paris"]}]}','b9cfe290e61a538c9ba8a6332254b3cb9163e01d9eb0905c9c73bee0340f67f2','2026-11-21T08:22:42.729374+00:00','applied',NULL,5,NULL,NULL,'{"loss":6.4450764656066895,"steps":3,"converged":false,"clamped":false}');
INSERT INTO "requests" VALUES(11,'fact-10','715ea0e5908e19d4','{"id":"fact-10","subject":"Alice Munro 10","prompt":"{} works in","target_new":"Rome","target_true":"Paris","relation":"place of work","statement":"Alice Munro 10 works in Rome.","paraphrases":["The place where Alice Munro 10 works is"],"portability":[{"prompt":"The capital of the land of Alice Munro 10 is","answers":["Paris"]}]}','3d9279a8083a695a4940ef53490717172aafa585b910076a38b225b6d3cf8ca8','2026-11-21T08:22:42.729546+00:00','applied',NULL,5,NULL,NULL,'{"loss":5.9254679679870605,"steps":3,"converged":false,"clamped":false}');
INSERT INTO "requests" VALUES(12,'fact-11','21c95227237c19b2','{"id":"fact-11","subject":"Thierry Henry 11","prompt":"{} works in","target_new":"Paris","target_true":"France","relation":"place of work","statement":"Thierry Henry 11 works in Paris.","paraphrases":["The place where Thierry Henry 11 works is"],"portability":[{"prompt":"The capital of the land of Thierry Henry 11 is","answers":["Paris"]}]}','9b955ca3e508d8a5961c66d1f01d85d67805c7433fb77d09d95033be4efe04ec','2026-11-21T08:22:42.729651+00:00','applied',NULL,5,NULL,NULL,'{"loss":6.724380970001221,"steps":3,"converged":false,"clamped":true}');
CREATE TABLE swaps (
    after_sequence INTEGER PRIMARY KEY,
    covariance  TEXT NOT NULL REFERENCES covariances (digest),
    edits       INTEGER NOT NULL,
    at          TEXT NOT NULL
);
INSERT INTO "swaps" VALUES(0,'4dcc1fe26b4d6a6aef184d5a7a9ef4e7a816d6d9f2108f22bbf47b6d44f797af',0,'2026-11-21T08:22:42.517748+00:00');
CREATE INDEX requests_by_state ON requests (state, seq);
CREATE INDEX requests_by_fact ON requests (fact_key, state);
CREATE INDEX fates_by_request ON fates (seq, number);
CREATE INDEX commits_by_version ON commits (version);
COMMIT;
PRAGMA user_version = 1;
