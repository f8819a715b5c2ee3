-- A journal recorded by release 0.1.0; do not change it: later releases must read it.
BEGIN TRANSACTION;
CREATE TABLE batches (
    sequence    INTEGER PRIMARY KEY,
    kind        TEXT NOT NULL CHECK (kind IN ('edit', 'revert')),
    created_at  TEXT NOT NULL,
    request_ids TEXT NOT NULL
);
INSERT INTO "batches" VALUES(1,'edit','2026-01-02T03:04:05+00:00','["a"]');
INSERT INTO "batches" VALUES(2,'edit','2026-01-02T03:04:05+00:00','["b","c","d"]');
INSERT INTO "batches" VALUES(3,'revert','2026-01-02T03:04:05+00:00','["b"]');
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
INSERT INTO "commits" VALUES(1,'69fd7cc2ad88130d20898f7e01c8aa5a4267260d872dbb780c11b4481a673713','0eb60d69b7e85e0631e67f1c1f2f87910e637ad5b7ef7d0d425af753a0189946','1111111111111111111111111111111111111111111111111111111111111111','7777777777777777777777777777777777777777777777777777777777777777','8888888888888888888888888888888888888888888888888888888888888888','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc',1,'{"4":3.25,"5":3.5}','{"4":0.5,"5":0.25}',2.5,'2026-01-02T03:04:05+00:00');
INSERT INTO "commits" VALUES(2,'eeb45cb150ed41ed8c2a898f832e5b3b5ae78ad0026c47c00b5e0e5437cd78dc','69fd7cc2ad88130d20898f7e01c8aa5a4267260d872dbb780c11b4481a673713','2222222222222222222222222222222222222222222222222222222222222222',NULL,NULL,NULL,3,'{}','{}',0.0,'2026-01-02T03:04:05+00:00');
INSERT INTO "commits" VALUES(3,'77774e13cc6a2595829fdea60c654e4c860ed76a93c19446b8f7794365d6a134','eeb45cb150ed41ed8c2a898f832e5b3b5ae78ad0026c47c00b5e0e5437cd78dc','3333333333333333333333333333333333333333333333333333333333333333',NULL,NULL,NULL,3,'{"4":3.5,"5":null}','{}',0.0,'2026-01-02T03:04:05+00:00');
CREATE TABLE covariances (
    digest      TEXT PRIMARY KEY,
    source      TEXT NOT NULL,
    tokens      INTEGER NOT NULL,
    layers      TEXT NOT NULL,
    from_version TEXT NOT NULL,
    path        TEXT NOT NULL,
    at          TEXT NOT NULL
);
INSERT INTO "covariances" VALUES('cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','{"kind":"self","seed":0}',4096,'[4,5]','0eb60d69b7e85e0631e67f1c1f2f87910e637ad5b7ef7d0d425af753a0189946','covariances/cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc.safetensors','2026-01-02T03:04:05+00:00');
CREATE TABLE evaluations (
    number      INTEGER PRIMARY KEY,
    version     TEXT NOT NULL,
    edits       INTEGER NOT NULL,
    kind        TEXT NOT NULL,
    metrics     TEXT NOT NULL,
    at          TEXT NOT NULL
);
INSERT INTO "evaluations" VALUES(1,'eeb45cb150ed41ed8c2a898f832e5b3b5ae78ad0026c47c00b5e0e5437cd78dc',3,'timeline','{"arms":{}}','2026-01-02T03:04:05+00:00');
CREATE TABLE events (
    number      INTEGER PRIMARY KEY,
    kind        TEXT NOT NULL,
    data        TEXT NOT NULL,
    at          TEXT NOT NULL
);
INSERT INTO "events" VALUES(1,'guard','{"action":"pause"}','2026-01-02T03:04:05+00:00');
CREATE TABLE fates (
    number      INTEGER PRIMARY KEY,
    seq         INTEGER NOT NULL REFERENCES requests (seq),
    state       TEXT NOT NULL,
    sequence    INTEGER,
    reason      TEXT,
    at          TEXT NOT NULL
);
INSERT INTO "fates" VALUES(1,1,'accepted',NULL,NULL,'2026-01-02T03:04:05+00:00');
INSERT INTO "fates" VALUES(2,2,'accepted',NULL,NULL,'2026-01-02T03:04:05+00:00');
INSERT INTO "fates" VALUES(3,3,'accepted',NULL,NULL,'2026-01-02T03:04:05+00:00');
INSERT INTO "fates" VALUES(4,4,'rejected',NULL,'target_new is empty','2026-01-02T03:04:05+00:00');
INSERT INTO "fates" VALUES(5,5,'accepted',NULL,NULL,'2026-01-02T03:04:05+00:00');
INSERT INTO "fates" VALUES(6,6,'accepted',NULL,NULL,'2026-01-02T03:04:05+00:00');
INSERT INTO "fates" VALUES(7,1,'applied',1,NULL,'2026-01-02T03:04:05+00:00');
INSERT INTO "fates" VALUES(8,2,'applied',2,NULL,'2026-01-02T03:04:05+00:00');
INSERT INTO "fates" VALUES(9,3,'applied',2,NULL,'2026-01-02T03:04:05+00:00');
INSERT INTO "fates" VALUES(10,1,'superseded',2,NULL,'2026-01-02T03:04:05+00:00');
INSERT INTO "fates" VALUES(11,5,'rejected',2,'diverged','2026-01-02T03:04:05+00:00');
INSERT INTO "fates" VALUES(12,2,'reverted',3,NULL,'2026-01-02T03:04:05+00:00');
CREATE TABLE meta (
    one         INTEGER PRIMARY KEY CHECK (one = 1),
    run_id      TEXT NOT NULL,
    base_digest TEXT NOT NULL,
    editor_digest TEXT NOT NULL,
    config      TEXT NOT NULL,
    errata_version TEXT NOT NULL,
    created_at  TEXT NOT NULL
);
INSERT INTO "meta" VALUES(1,'run-1','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','{"editor":{"type":"memit"}}','0.1.0','2026-01-02T03:04:05+00:00');
CREATE TABLE refreshes (
    triggered_at INTEGER PRIMARY KEY,
    from_version TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('started', 'done', 'refused', 'swapped')),
    reason      TEXT,
    covariance  TEXT,
    seconds     REAL,
    at          TEXT NOT NULL
);
INSERT INTO "refreshes" VALUES(2,'eeb45cb150ed41ed8c2a898f832e5b3b5ae78ad0026c47c00b5e0e5437cd78dc','started',NULL,NULL,NULL,'2026-01-02T03:04:05+00:00');
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
INSERT INTO "requests" VALUES(1,'a','265f3722ea4088cc','{"id":"a","subject":"France","prompt":"The capital of {} is","target_new":"Lyon","relation":"capital","statement":"The capital of France is Lyon."}','decb0f8d8f56f531a5ee5e0bfc5cbf603fe27466ca6213a7e9d9ead1dec4825b','2026-01-02T03:04:05+00:00','superseded',NULL,1,2,'c','{"loss":0.25,"steps":3,"converged":true,"clamped":false}');
INSERT INTO "requests" VALUES(2,'b','c80535d662e6a104','{"id":"b","subject":"Spain","prompt":"The capital of {} is","target_new":"Lyon","relation":"capital","statement":"The capital of Spain is Lyon."}','87cf1340ecb15978c6d1311acb960fbc6f1deade2eca57098d4a378b48c541e4','2026-01-02T03:04:05+00:00','reverted',NULL,2,3,NULL,'{"loss":0.25,"steps":3,"converged":true,"clamped":false}');
INSERT INTO "requests" VALUES(3,'c','265f3722ea4088cc','{"id":"c","subject":"France","prompt":"The capital of {} is","target_new":"Nice","relation":"capital","statement":"The capital of France is Nice."}','7106ca05c78719535f17ed904805d8c855ad532defa435eadc791fe350a4db16','2026-01-02T03:04:05+00:00','applied',NULL,2,NULL,NULL,'{"loss":0.25,"steps":3,"converged":true,"clamped":false}');
INSERT INTO "requests" VALUES(4,'record:s.jsonl:4',NULL,'{"subject": "x"}','55974289d088ca78269800b5e3b474a938ea7dc45edb0157d8bfd409d444727f','2026-01-02T03:04:05+00:00','rejected','target_new is empty',NULL,NULL,NULL,NULL);
INSERT INTO "requests" VALUES(5,'d','6b6e85465c58a89f','{"id":"d","subject":"Italy","prompt":"The capital of {} is","target_new":"Lyon","relation":"capital","statement":"The capital of Italy is Lyon."}','a45c9529b5e3b81cf06b0dcd98aaa84bfc710ad58fe92ec45dfa4aa15dd0e3d7','2026-01-02T03:04:05+00:00','rejected','diverged',NULL,2,NULL,'{}');
INSERT INTO "requests" VALUES(6,'e','688645fae58e06fb','{"id":"e","subject":"Peru","prompt":"The capital of {} is","target_new":"Lyon","relation":"capital","statement":"The capital of Peru is Lyon."}','639f6a8b993fcf746fcf2d66f4e327792d091550328f9f70662df30700e7b085','2026-01-02T03:04:05+00:00','accepted',NULL,NULL,NULL,NULL,NULL);
CREATE TABLE swaps (
    after_sequence INTEGER PRIMARY KEY,
    covariance  TEXT NOT NULL REFERENCES covariances (digest),
    edits       INTEGER NOT NULL,
    at          TEXT NOT NULL
);
INSERT INTO "swaps" VALUES(0,'cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc',0,'2026-01-02T03:04:05+00:00');
CREATE INDEX requests_by_state ON requests (state, seq);
CREATE INDEX requests_by_fact ON requests (fact_key, state);
CREATE INDEX fates_by_request ON fates (seq, number);
CREATE INDEX commits_by_version ON commits (version);
COMMIT;
PRAGMA user_version = 1;
