BEGIN TRANSACTION;
CREATE TABLE attempts (
    number      INTEGER PRIMARY KEY,
    sequence    INTEGER NOT NULL,
    request_ids TEXT NOT NULL,
    started_at  TEXT NOT NULL,
    ended_at    TEXT,
    outcome     TEXT CHECK (outcome IN ('committed', 'passed', 'failed', 'died')),
    reason      TEXT
);
CREATE TABLE "batches" (
    sequence    INTEGER PRIMARY KEY,
    kind        TEXT NOT NULL CHECK (kind IN ('edit', 'revert', 'repair', 'module', 'erase')),
    created_at  TEXT NOT NULL,
    request_ids TEXT NOT NULL
);
INSERT INTO "batches" VALUES(1,'edit','2026-11-29T07:42:17.182794+00:00','["r0","r1","r2"]');
INSERT INTO "batches" VALUES(2,'edit','2026-11-29T07:42:17.412649+00:00','["r3","r4","r5"]');
INSERT INTO "batches" VALUES(3,'edit','2026-11-29T07:42:17.648127+00:00','["r6","r7","r8"]');
INSERT INTO "batches" VALUES(4,'revert','2026-11-29T07:42:17.912439+00:00','["r4","r8"]');
INSERT INTO "batches" VALUES(5,'edit','2026-11-29T07:42:18.112610+00:00','["r9","r10"]');
INSERT INTO "batches" VALUES(6,'revert','2026-11-29T07:42:18.296946+00:00','["r3"]');
CREATE TABLE chain (
    number      INTEGER PRIMARY KEY,
    kind        TEXT NOT NULL,
    ref         INTEGER NOT NULL,
    content     BLOB NOT NULL,
    digest      BLOB NOT NULL
);
INSERT INTO "chain" VALUES(1,'begin',1,X'9B7928D23A2D9D35E051F2F36B5383821EF6406779756E8F5E79EB36604190C1',X'83FA4499A137427DE6814114081EE12BB8FC306CDB102424132FB4AAD7A1F4FA');
INSERT INTO "chain" VALUES(2,'covariance',1,X'DD221FDC0A810F773BDF8883BA41393F14D97122B3CC726247EDC9EC6BE1650F',X'89A1535CF5B6898A4642A5427430F533A31D4A2250E61EDC9C803623DD1D33BB');
INSERT INTO "chain" VALUES(3,'swap',0,X'B8FDCD380C650C1ECF46EBD50B1A55FE5109A199B87CE4C500C97161C837C1F2',X'21B6B8AC0DA60E043F58316662584749B2CF3A9CC6F4073DBED889DA0D0D4999');
INSERT INTO "chain" VALUES(4,'acceptance',1,X'0A549E1003F29BA80934CB8D5072EFED8A4F3F87DE479A5D6AF15EDD2549B3A5',X'1AC9759EC77800BED81A93E8023ADE30E92D8A5A7E0DDC1F4D040A0C239E9FA0');
INSERT INTO "chain" VALUES(5,'fate',1,X'A090559B6A406D6FFC52B2467D6B1F9B4570F8F7F459EBB1E645E6770F699967',X'E82390D190847D663A2578B28D1BFB149E94EA1AA7D2E0957F6E58E9B499FA09');
INSERT INTO "chain" VALUES(6,'acceptance',2,X'25DD3FA24BA0A4D78CDEBB5DC3856CA2E68181305D4DA7AC69B745CABD764206',X'EF6D47848CBE10C43587931449FBD2B7C5C805AE46357295A7B170B1520EDC5B');
INSERT INTO "chain" VALUES(7,'fate',2,X'331B957401CE01AE977281BE60AF3AA85DE41A363943EC3089947EAD4D067C52',X'945FD307E02D3D0C2D0B1BEED1D8CA2AD50B0AF613734664D8FEECE1C81B4DFF');
INSERT INTO "chain" VALUES(8,'acceptance',3,X'6A47CB2B51AAB1F9EBC3EA1DD2E0554EB61075E22E978B84D360AB0736307939',X'DF0A8C161DD6CA69D2A97ED8A4F0C7F8CB607C4F106A38AFBB7154B44408E4B6');
INSERT INTO "chain" VALUES(9,'fate',3,X'3960EEE7CD320E878F12E3F75377E9BBD54B29A5A060163BDC9D285440F51CFA',X'F64C3091CC4AABC0DCE930078C75FB274D204B90047C8989CC45C41E8C34639B');
INSERT INTO "chain" VALUES(10,'fate',4,X'7CD5F007817711FDFEFEF8B14CC3A241E8E094622C85DAFF295D0F3B62523A94',X'F6165A7C1030D91565FE5E3C8B66A51E801EA024985AC44296770CC4F08C67D4');
INSERT INTO "chain" VALUES(11,'fate',5,X'CC085A18681DE05A06EE6C9500F52A831F0A2579D210E91279FE728150B1E3CA',X'99110D746C3188F98C919F18D06D5A40DA192D4C002FC86F5BC406A6C77CB7FC');
INSERT INTO "chain" VALUES(12,'fate',6,X'3492D90150735932E6E166EBF44C6FC34FB1A14C702368A553D308DBE08BAA15',X'3928C4C988B3282C57CB7C05B210461E6D64ABD151DEEA81CC84EB110EE593D3');
INSERT INTO "chain" VALUES(13,'commit',1,X'98E407DBE72EA5B82AD8F01A9BC21320F99573CF16ACD41E5F3360F52A934866',X'CFC0E3BDC04E4E8EF44AD33AD4B6C2B7084E461394AAD67B7116E5D19EA5FF55');
INSERT INTO "chain" VALUES(14,'acceptance',4,X'C9EDADBA13E8A4C478E9FBCA6CE934915BF7329CDA10F2CC55BCA5147285A988',X'D638DD53CCFD704675302749578063897D4B79F3C6CF2DB3542A01C2B9A0F86D');
INSERT INTO "chain" VALUES(15,'fate',7,X'7CAA99C032A40C12B249F6E92688F7E3A46A858A9DFA36DEBF97AAD7B7BBD6EA',X'86A71D019238EB16DBEAC768F1F6C4859771669C54FB26B9D354476CC472ACBB');
INSERT INTO "chain" VALUES(16,'acceptance',5,X'33CDF84E3BEDBD6796ACD56289CC299A0007CFE7F70BE877B58EA1D305BB1809',X'A0DFDEBB1943E39DF125BBCD707DEF035B180003E7A419AB804ED286E7A443E4');
INSERT INTO "chain" VALUES(17,'fate',8,X'CB45515F0D55CA1FC0DD5E79FB63C61E5979A5047FCF1039F10C1EBC788E1FCD',X'BC13D305E16A11D7BAF5826034D3F09CF46012309FF20E614E5B209FC553B411');
INSERT INTO "chain" VALUES(18,'acceptance',6,X'19BB3820CEBCEF2EF9A53EA72AA5E2209D89552E3502A6548CD7EFF94E7EE09F',X'0957EC5C9720CACDA0F9E0E5675C79D286B308856D7D1A87FFED42442C5E648C');
INSERT INTO "chain" VALUES(19,'fate',9,X'6268DDB98A297A43862BA8FE56788FCEB4ACDFF3614B36165A5CE8518DF8F0F3',X'96483881EEFADAFE01440A235106645D0F6382257F10115AA259675731D03846');
INSERT INTO "chain" VALUES(20,'fate',10,X'638F278FDAE5AD63D2FBED6A88B61E3ABF84D1E5D80E387F855FB23FA1A44574',X'91E67B6B3DE41EF26349884AAE4E56BA249053D35415FDEC4287E940FC0D4CCD');
INSERT INTO "chain" VALUES(21,'fate',11,X'876413FC7DD16E03434BAA1921C823E260974A8BAD3E42CBB8175F37393B1244',X'5FBC80E57FE89C58A56BC72496BF75A76240B2888EEC096E025A3678B9C38394');
INSERT INTO "chain" VALUES(22,'fate',12,X'FA02555089F376D5EAFDB6AF0A0074C70B73EE31B3BD24F4478A1CD473A63A79',X'44F37CDC4187B31F2953DABE2541189CDC18A67C044EE492F8E329E339C904F4');
INSERT INTO "chain" VALUES(23,'commit',2,X'BE55E5B221E1DFE6B6940CD2079ACF81C2430D37254DB81C5233E9C4987CFA3F',X'D3F9F229A380EF2FCD3D069F7C47F7E6B43E65FB239BBDE6E13D5684FC132DFB');
INSERT INTO "chain" VALUES(24,'event',1,X'E15D352D2CFA91A7426F2A9DB144479AEC4576953BE2E7D23A0177AFAD599703',X'8060F14D2CDF141A2AA52E8B091B106D21E4B704CDEE16A095FDC545DAF5BAD0');
INSERT INTO "chain" VALUES(25,'acceptance',7,X'5C7F73B36CCA5610F2C8863AD3CB88DD2EC4A12F30A754A17FBD027AAB118149',X'F055B53EEDD5B0E0A237B6931C4202DA932B5A74A3F28011DA454A1F68085D92');
INSERT INTO "chain" VALUES(26,'fate',13,X'4A417B169B9A241AC2266D830D73FE17A75A96400440B00A0B3876698C3117D6',X'EB4771910DBD035662AD9389842AEC01BEFF325F83EEE7DDE659ACE0D9A02674');
INSERT INTO "chain" VALUES(27,'acceptance',8,X'90E3521825C95300E554090582EFB579A59700D7436ADEF0466F0CE42FE03997',X'D01C708624F04390B8884229CBCDBE84F67F83B6296C0768664BCE7D5096EDE3');
INSERT INTO "chain" VALUES(28,'fate',14,X'026BAFEC7A218FB866422D61752F4213DA81F34C1E715F14CCD0722DD3D7959D',X'59B38C552C71814B683E8F22612FC3EE6CCE12E2ED5BD2B90BAE620C14CECD0F');
INSERT INTO "chain" VALUES(29,'acceptance',9,X'0024EE66545ECEF29C2F8D8B19472C6174D84FCC23586F9BEB4861BD15771C52',X'1A97CF3372E0188F158DDD75EF5F8876797A662F02FF73E833D577C4CE7E838E');
INSERT INTO "chain" VALUES(30,'fate',15,X'39E1489B7B2F0EA30979AC4366B5719F4B583F41E0701D48196646E867E0A5DE',X'E9A6811D7D8C4DE57B988E3DB5D2C26B54DCC7793C14A54A435845E611169709');
INSERT INTO "chain" VALUES(31,'fate',16,X'FA29D7327CB035C59E0FC4CAB8FB946808DB9C90975F04CFAF57D931DC3ADD96',X'FB2274477DDBB81E48256C8B15FAF16C3C5926691B380E5C61BCD515A38B1D61');
INSERT INTO "chain" VALUES(32,'fate',17,X'64DD77EA5E7C9A6B0B8A91FD0DA8EB3914AB5865EDA4B348A3B9F79205BA39C3',X'567DBB9353FF6548AFE86B92AD89AAF8665629B9882FF3F6CF1D25A4BE5A625B');
INSERT INTO "chain" VALUES(33,'fate',18,X'BF6091F0A9E58E303F2CC6F010BAF549CAA1ECB00545177960797F9E134E5EC2',X'32D76CB89BC560ED6CEE801C55CF2E9EABE027563488FD2D04D6B8AF0DD1491D');
INSERT INTO "chain" VALUES(34,'fate',19,X'1557BA034A3D241469D4A0938D0AD1AF1F19F0766A3BBCF869EAC85B23DB4282',X'F5CF73958413EBE23C52D84FA8A5B18EA3AE1BB0238A7150DE4C2366EE482B12');
INSERT INTO "chain" VALUES(35,'commit',3,X'3AF786CF649BDDFBCD8262180954EC71AA244F5948E92E330B886A010EB4AF8A',X'1ADA020223D0DCB1F57EA035137F0BF48C3FDF23C5CF5D89CBEC844AAADE452B');
INSERT INTO "chain" VALUES(36,'fate',20,X'A376ED7B343FAA80C5C4ECE3DBB1EA9898127A5AF37C0553F338594E4950F041',X'C4971E979A052F129CA99FBC7201ACAF6AF7A5377C638AE42C71B9A70F8546DE');
INSERT INTO "chain" VALUES(37,'fate',21,X'5D7B122DCA64F81D72EABBFC1799A9E1394D31F6CDC084062D92A26F9B2C4368',X'5DB0BF9F307B354BD65A7F042561B7555AA71DB1C629179749832EAB5E51263E');
INSERT INTO "chain" VALUES(38,'commit',4,X'310DB071ED8FEA3455016154DDA2D8E12C6E57F3C37F2E5F05E7429ED1A946E7',X'413E386481B5ECF6C6EE8C34EA2648F519145F3FDD7DD853C8A078ADF9D84DA5');
INSERT INTO "chain" VALUES(39,'acceptance',10,X'A5D8591B2661CB0DCA0DCBB6A46BA3D4CB09D4A2DB68BE31E11E41794FDFA867',X'03D4E19C0C798F245588EF580627518D257C88F92AAB1C44FB341991C7B92DEC');
INSERT INTO "chain" VALUES(40,'fate',22,X'6C55BEC060EDCBA289B7EBE4F095B57A20235B973FF71E476B159928EAF6CE29',X'D65B2478D877375DE479948B34D71874D961C171FAE3BBF96D364183245E859C');
INSERT INTO "chain" VALUES(41,'acceptance',11,X'46B780C3245E5C42F9EBE3CE465D7EDDEC2FF6F84A7708087DE8155BE0F04637',X'1DAABC7BE58B6EFF2DADDEE9436452CB10423889B2507A6B5B774739BB17E4A8');
INSERT INTO "chain" VALUES(42,'fate',23,X'3B28BF6DC2996FD01B65F03ADDA0FE594B3B453B4A316B921A9CD046F4253792',X'BBC18E01A539E51DD80FAD3DEBC382065DB7D3C4E29AB89BE22A010DB2C3FB6A');
INSERT INTO "chain" VALUES(43,'fate',24,X'D4F1A661BE0CAE881C0BA4612686DD88D848A4807A05AA387C67F5E43ADDA4CD',X'F6285BDA5300C8652A48DA38E92186EBF25A5A7B852EF2944687E2343860B833');
INSERT INTO "chain" VALUES(44,'fate',25,X'7A0FDD96E7F0CD10069C0974CE67DF7E03DB5AC500B969547099C53F222F07A4',X'236E2E8BDEF0AD5DBED3341884128B0D75BCFD69FB8108099B8D33C81CB0C77A');
INSERT INTO "chain" VALUES(45,'commit',5,X'4B0A46457F9A36D803B09169BBEEC558C768D3CDBE29311715335373D52A807F',X'018AE0E85834B0CCB19AA39DB6336FB55C3E0005A1188BD2F11AD2A84D378CC4');
INSERT INTO "chain" VALUES(46,'fate',26,X'6133E8977D40207F8DF4634D0F8FC53A43ACBC20B064B258EC4688C1A5FDD0E9',X'D193E7AF1BCC9AF0F8E69ABC69C9316EBF6162BD72947439CCE8AF43CA2EF0CA');
INSERT INTO "chain" VALUES(47,'commit',6,X'275B1FDB492BE478A7EDC5CEB780CE99481A8E283BED4395892759D3DD4D66E8',X'80E5F3E3B997D01E8EFAC7460A32BA034526A210CF8FD79CD8294D425ABE008A');
INSERT INTO "chain" VALUES(48,'acceptance',12,X'A7D440323C5205D873C5B6B173075D03CDA1B83554B8F5DDED7876BBA28AA5C9',X'8DE93D8418BBCF41162E2D55B4A61E9E6AFF0233DC9520B5F584EC8599BDD873');
INSERT INTO "chain" VALUES(49,'fate',27,X'D6584AD84D1F29F8610F15108C4439B54982BCD460256503F44B4132BE0F6E08',X'AE15AFBABE6549331863C36E8F9AD805BBE86DBEB27684754789384796DFCDBB');
INSERT INTO "chain" VALUES(50,'acceptance',13,X'60811FCB96E0EE6A567836581087E549576F66B72F9797B20E99835AA11ED3BE',X'19311829074EC56FAE579E18B499F24A8557F9572EB1471ECC613005CF81BD02');
INSERT INTO "chain" VALUES(51,'fate',28,X'7F903F5A2BE70624055A8A391404F7A2A12D497CDC49E0EE58D34FB3E0DC4ED2',X'CDB1E3A10DDB48F87C48722EBD1C24AEBB4AA82A4127FF96935402E76AFBF20E');
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
, sweeps INTEGER NOT NULL DEFAULT 1, parts TEXT NOT NULL DEFAULT '{}', figures TEXT, holds INTEGER NOT NULL DEFAULT 0);
INSERT INTO "commits" VALUES(1,'28fa3f7d7919565d83199863157a902395b9ee6c6d50f3628b58bf1720c7f3b4','0eb60d69b7e85e0631e67f1c1f2f87910e637ad5b7ef7d0d425af753a0189946','bacb4c4207833602cc5cc02db785c3bab452f74b04cce6ea2b99952281545226','bd37b3ea9f3a1340e6af51afc4436cdc4f5a51c4bf780d6df8c1d7a4f53065a6',NULL,'369261524e1954aecd4bc07b253f3c9ffaca121fa9e51bf7fcea55a7f6f002b4',3,'{"1":4.617874559522333}','{"1":4.0966760348325917e-07}',1.50988999004766810685e-01,'2026-11-29T07:42:17.182794+00:00',1,'{}',NULL,3);
INSERT INTO "commits" VALUES(2,'7c4456e9fbd268c1ed38db14d8c7e57b008b187a9f2fe53d855ed90e196c49b8','28fa3f7d7919565d83199863157a902395b9ee6c6d50f3628b58bf1720c7f3b4','fa874b3d90282d5542556e52210ea7a60ea9af06122fe755dd4b503b88ed2c89','18dc69de6e7ccce45eb93a156e2c0a48de5e2379ca1b017e18cf1c335b8a85f1',NULL,'369261524e1954aecd4bc07b253f3c9ffaca121fa9e51bf7fcea55a7f6f002b4',6,'{"1":4.617874556862093}','{"1":3.1276002300998184e-07}',1.46990096000081393867e-01,'2026-11-29T07:42:17.412649+00:00',1,'{}',NULL,6);
INSERT INTO "commits" VALUES(3,'5ec2ce46f8e2f7c951f2153a6085950ae3c34b6a13f56ad71d3f197c6758547f','7c4456e9fbd268c1ed38db14d8c7e57b008b187a9f2fe53d855ed90e196c49b8','64ef3689fd56fea6fb7f063a9f6112904b9054dea766e8e9b7fbb8ae85091543','4e8ebebff5894e89ae66ccbc865a2bcbf075afa4d503ed7798f47dd1bf43ab33',NULL,'369261524e1954aecd4bc07b253f3c9ffaca121fa9e51bf7fcea55a7f6f002b4',9,'{"1":4.617874542825777}','{"1":3.578027243699233e-07}',1.36250714000198058784e-01,'2026-11-29T07:42:17.648127+00:00',1,'{}',NULL,8);
INSERT INTO "commits" VALUES(4,'77f2d0adfd543e59fad3c9f4dc37f34573a2c09f362577e2a50fb8b790e1aba9','5ec2ce46f8e2f7c951f2153a6085950ae3c34b6a13f56ad71d3f197c6758547f','97b0f391b25ad94181b620ff545a7ea141ee4ff50db899fc1748b86ff56c4800','73da4e9f93a75f41be1b4ac288db33b0b321bb6c4a073c00dacba49d7ad6703b',NULL,'369261524e1954aecd4bc07b253f3c9ffaca121fa9e51bf7fcea55a7f6f002b4',9,'{"1":4.61787454223954}','{"1":2.8517924751400456e-07}',1.6333514900179579854e-01,'2026-11-29T07:42:17.912439+00:00',1,'{}',NULL,6);
INSERT INTO "commits" VALUES(5,'68490b9feaca549b4b1dba83f8868a708cd2edd4a788315de17aa0e939487447','77f2d0adfd543e59fad3c9f4dc37f34573a2c09f362577e2a50fb8b790e1aba9','4b53dd37884365ab45b4a25d236553e52e3ed53634af08d66781d54169c3d3ab','db6a120a3085b4cd4d6bfc59347b80918274897375a7f69413f1447b41948d4d',NULL,'369261524e1954aecd4bc07b253f3c9ffaca121fa9e51bf7fcea55a7f6f002b4',11,'{"1":4.6178745317598}','{"1":2.593014839618548e-07}',1.27937924997240770608e-01,'2026-11-29T07:42:18.112610+00:00',1,'{}',NULL,8);
INSERT INTO "commits" VALUES(6,'2c765e96aa166782a712b0db76876bea761ca675d8a939b014f2e256dc014cb2','68490b9feaca549b4b1dba83f8868a708cd2edd4a788315de17aa0e939487447','e4697cda749e476ba88373f7bba2209452282af111894e162392174eb6b9842d','5af48ffca57c370fed7d58e8966c15d7a2cdb1c87556c8eb5154fa5edd7b6cf7',NULL,'369261524e1954aecd4bc07b253f3c9ffaca121fa9e51bf7fcea55a7f6f002b4',11,'{"1":4.6178745300972945}','{"1":1.6249382260640485e-07}',8.69179840010474435985e-02,'2026-11-29T07:42:18.296946+00:00',1,'{}',NULL,7);
CREATE TABLE counters (
    name        TEXT PRIMARY KEY,
    value       INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO "counters" VALUES('state.accepted',2);
INSERT INTO "counters" VALUES('state.applied',7);
INSERT INTO "counters" VALUES('state.reverted',3);
INSERT INTO "counters" VALUES('state.superseded',1);
CREATE TABLE covariances (
    digest      TEXT PRIMARY KEY,
    source      TEXT NOT NULL,
    tokens      INTEGER NOT NULL,
    layers      TEXT NOT NULL,
    from_version TEXT NOT NULL,
    path        TEXT NOT NULL,
    at          TEXT NOT NULL
);
INSERT INTO "covariances" VALUES('369261524e1954aecd4bc07b253f3c9ffaca121fa9e51bf7fcea55a7f6f002b4','{}',400,'[0,1,2]','v0','369261524e1954aecd4bc07b253f3c9ffaca121fa9e51bf7fcea55a7f6f002b4','2026-11-29T07:42:16.972174+00:00');
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
INSERT INTO "events" VALUES(1,'snapshot','{"sequence":2,"version":"7c4456e9fbd268c1ed38db14d8c7e57b008b187a9f2fe53d855ed90e196c49b8","digest":"65cd24f2cbd44b3a97d8cbb880dde02aba3188a249a36d452dbd3a0ad2e7078f"}','2026-11-29T07:42:17.447013+00:00');
CREATE TABLE fates (
    number      INTEGER PRIMARY KEY,
    seq         INTEGER NOT NULL REFERENCES requests (seq),
    state       TEXT NOT NULL,
    sequence    INTEGER,
    reason      TEXT,
    at          TEXT NOT NULL
, settled TEXT);
INSERT INTO "fates" VALUES(1,1,'accepted',NULL,NULL,'2026-11-29T07:42:16.984684+00:00','[null,null,null]');
INSERT INTO "fates" VALUES(2,2,'accepted',NULL,NULL,'2026-11-29T07:42:16.985581+00:00','[null,null,null]');
INSERT INTO "fates" VALUES(3,3,'accepted',NULL,NULL,'2026-11-29T07:42:16.985914+00:00','[null,null,null]');
INSERT INTO "fates" VALUES(4,1,'applied',1,NULL,'2026-11-29T07:42:17.183386+00:00','["{\"loss\":6.634843349456787,\"steps\":1,\"converged\":false,\"clamped\":false}",null,null]');
INSERT INTO "fates" VALUES(5,2,'applied',1,NULL,'2026-11-29T07:42:17.192138+00:00','["{\"loss\":6.582292079925537,\"steps\":1,\"converged\":false,\"clamped\":false}",null,null]');
INSERT INTO "fates" VALUES(6,3,'applied',1,NULL,'2026-11-29T07:42:17.192415+00:00','["{\"loss\":6.340790748596191,\"steps\":1,\"converged\":false,\"clamped\":false}",null,null]');
INSERT INTO "fates" VALUES(7,4,'accepted',NULL,NULL,'2026-11-29T07:42:17.196728+00:00','[null,null,null]');
INSERT INTO "fates" VALUES(8,5,'accepted',NULL,NULL,'2026-11-29T07:42:17.197176+00:00','[null,null,null]');
INSERT INTO "fates" VALUES(9,6,'accepted',NULL,NULL,'2026-11-29T07:42:17.197465+00:00','[null,null,null]');
INSERT INTO "fates" VALUES(10,4,'applied',2,NULL,'2026-11-29T07:42:17.413107+00:00','["{\"loss\":6.637848854064941,\"steps\":1,\"converged\":false,\"clamped\":false}",null,null]');
INSERT INTO "fates" VALUES(11,5,'applied',2,NULL,'2026-11-29T07:42:17.413374+00:00','["{\"loss\":7.087061405181885,\"steps\":1,\"converged\":false,\"clamped\":false}",null,null]');
INSERT INTO "fates" VALUES(12,6,'applied',2,NULL,'2026-11-29T07:42:17.413560+00:00','["{\"loss\":6.70408821105957,\"steps\":1,\"converged\":false,\"clamped\":false}",null,null]');
INSERT INTO "fates" VALUES(13,7,'accepted',NULL,NULL,'2026-11-29T07:42:17.460626+00:00','[null,null,null]');
INSERT INTO "fates" VALUES(14,8,'accepted',NULL,NULL,'2026-11-29T07:42:17.461124+00:00','[null,null,null]');
INSERT INTO "fates" VALUES(15,9,'accepted',NULL,NULL,'2026-11-29T07:42:17.461462+00:00','[null,null,null]');
INSERT INTO "fates" VALUES(16,7,'applied',3,NULL,'2026-11-29T07:42:17.648470+00:00','["{\"loss\":7.126995086669922,\"steps\":1,\"converged\":false,\"clamped\":false}",null,null]');
INSERT INTO "fates" VALUES(17,8,'applied',3,NULL,'2026-11-29T07:42:17.648691+00:00','["{\"loss\":6.55948543548584,\"steps\":1,\"converged\":false,\"clamped\":false}",null,null]');
INSERT INTO "fates" VALUES(18,2,'superseded',3,NULL,'2026-11-29T07:42:17.649018+00:00','["{\"loss\":6.582292079925537,\"steps\":1,\"converged\":false,\"clamped\":false}",null,null]');
INSERT INTO "fates" VALUES(19,9,'applied',3,NULL,'2026-11-29T07:42:17.649192+00:00','["{\"loss\":6.689858913421631,\"steps\":1,\"converged\":false,\"clamped\":false}",null,null]');
INSERT INTO "fates" VALUES(20,5,'reverted',4,NULL,'2026-11-29T07:42:17.912982+00:00','["{\"loss\":7.087061405181885,\"steps\":1,\"converged\":false,\"clamped\":false}",null,null]');
INSERT INTO "fates" VALUES(21,9,'reverted',4,NULL,'2026-11-29T07:42:17.913202+00:00','["{\"loss\":6.689858913421631,\"steps\":1,\"converged\":false,\"clamped\":false}",null,null]');
INSERT INTO "fates" VALUES(22,10,'accepted',NULL,NULL,'2026-11-29T07:42:17.928957+00:00','[null,null,null]');
INSERT INTO "fates" VALUES(23,11,'accepted',NULL,NULL,'2026-11-29T07:42:17.929405+00:00','[null,null,null]');
INSERT INTO "fates" VALUES(24,10,'applied',5,NULL,'2026-11-29T07:42:18.113133+00:00','["{\"loss\":6.34765625,\"steps\":1,\"converged\":false,\"clamped\":false}",null,null]');
INSERT INTO "fates" VALUES(25,11,'applied',5,NULL,'2026-11-29T07:42:18.113375+00:00','["{\"loss\":6.545990943908691,\"steps\":1,\"converged\":false,\"clamped\":false}",null,null]');
INSERT INTO "fates" VALUES(26,4,'reverted',6,NULL,'2026-11-29T07:42:18.297301+00:00','["{\"loss\":6.637848854064941,\"steps\":1,\"converged\":false,\"clamped\":false}",null,null]');
INSERT INTO "fates" VALUES(27,12,'accepted',NULL,NULL,'2026-11-29T07:42:18.309784+00:00','[null,null,null]');
INSERT INTO "fates" VALUES(28,13,'accepted',NULL,NULL,'2026-11-29T07:42:18.310176+00:00','[null,null,null]');
CREATE TABLE marks (
    sequence    INTEGER PRIMARY KEY REFERENCES batches (sequence),
    state       TEXT NOT NULL CHECK (state IN ('compacted', 'unprovable')),
    reason      TEXT NOT NULL,
    at          TEXT NOT NULL
);
CREATE TABLE meta (
    one         INTEGER PRIMARY KEY CHECK (one = 1),
    run_id      TEXT NOT NULL,
    base_digest TEXT NOT NULL,
    editor_digest TEXT NOT NULL,
    config      TEXT NOT NULL,
    errata_version TEXT NOT NULL,
    created_at  TEXT NOT NULL
);
INSERT INTO "meta" VALUES(1,'run','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','{"name":"run","seed":0,"model":{"name":"tiny","dtype":"float32","parallel":null},"editor":{"type":"memit","layers":[1],"values":{"profile":"exact","contexts":null,"lr":0.3,"steps":1,"clamp":2.0,"weight_decay":0.0,"kl_factor":0.0625,"stop_loss":0.05,"units":"absolute","post_norm":"exact","batch_tokens":2048},"norm_anchors":false,"regime":"accumulated","cov_weight":2.0,"units":"absolute","past_keys":true},"contexts":{"count":5,"length":10,"further":[]},"stream":{"path":"x","follow":false,"redis":null,"kafka":null,"schema":"auto","target":"default","limit":null,"skip":0,"probes":null,"portability":null},"batching":{"size":10,"max_age_seconds":null,"distinct_subjects":false},"verify":{"enabled":true,"corrections":2,"on_weak":"keep","max_damage":null,"probes":null},"schedule":"deterministic","snapshots":{"every":null,"serving":200,"keep":2},"artifacts":null,"covariance":{"seed_mode":"rand","seed_tokens":1,"seed_pool":"model","seed_bos":null,"max_new_tokens":256,"sequences_per_unit":16,"slots":16,"sampler":null,"server":null,"source":"self_generated","corpus":null,"mixture":null,"store":null,"packed":false,"seed":0,"tokens":400,"sequences":null,"units_per_block":1},"refresh":{"every":null,"seconds":null,"drift":null,"lag":10,"model":"live","mode":"replace","ema_weight":0.5,"mixture_weight":0.5,"max_jsd":0.2},"repair":{"every":null,"sample":100,"target":0.95,"most":0.2},"memory":{"embedder":{"type":"sentence","model":"all-minilm-l6-v2","batch_size":32,"device":"cpu","threads":1},"index":{"exact_limit":200000,"nprobe":16,"tail_share":0.1},"statement":{"style":"request","templates":{}},"scr":{"k":3,"min_similarity":0.2,"chooser":"likelihood","min_gain":0.6,"style":"auto","examples":true}},"router":{"max_false_alarms":0.02,"path":null,"answer":"edited_memory"},"evaluation":{"every":null,"sample":24,"arms":["base","edited","memory","edited_memory","routed"],"max_new_tokens":12,"stop_at_newline":true,"judge":{"type":"contains"},"reasoning":null,"final":"all","free_text":null,"held_out":"configs/text/heldout.txt","texts":{},"latency_questions":8},"guard":{"every":null,"sentinels":null,"held_out":null,"max_sentinel_loss":0.1,"max_perplexity_ratio":1.2,"wait":true,"pause":true,"revert":false,"webhook":null,"webhook_timeout_seconds":5.0,"webhook_retries":3},"publish":{"to":[],"every":null,"served_name":"errata","max_rank":null,"max_error":0.05,"sample":20,"min_edited":0.8,"min_untouched":0.8,"max_new_tokens":12,"timeout_seconds":60.0,"adapters":null,"adapters_on_server":null,"inplace":false},"service":{"tokens_file":null,"max_body_bytes":1048576,"max_edits_per_request":1000,"max_waiting":10000,"max_waiting_bytes":67108864,"max_evaluations":8,"max_queued_calls":256,"max_queries":16,"max_questions_per_query":64,"max_question_tokens":2048,"max_answer_tokens":256,"answer_seconds":120.0,"end_seconds":540.0,"lock_seconds":2.0,"revert_wait_seconds":20.0,"poll_seconds":0.25,"hosts":null,"max_connections":512,"head_seconds":10.0,"calls_per_second":null,"calls_burst":50,"audit_reads":false,"open_metrics":false},"tracking":{"uri":null,"experiment":"errata","parent":null,"description":"","tags":{},"system_seconds":30.0,"trace_share":0.0},"ray":{"address":"local","namespace":"errata","generation":{"num_cpus":1.0,"num_gpus":0.0,"resources":{},"labels":{},"placement":"free","device":"cpu","threads":1,"nice":4},"generation_workers":2,"generation_workers_max":null,"editor":{"num_cpus":1.0,"num_gpus":0.0,"resources":{},"labels":{},"placement":"free","device":"cpu","threads":1,"nice":0},"evaluation":{"num_cpus":1.0,"num_gpus":0.0,"resources":{},"labels":{},"placement":"free","device":"cpu","threads":1,"nice":4},"evaluation_workers":2,"retrieval":{"num_cpus":0.5,"num_gpus":0.0,"resources":{},"labels":{},"placement":"free","device":"cpu","threads":1,"nice":0},"max_revivals":5,"revival_seconds":3600.0,"call_timeout_seconds":3600.0,"reserve":false,"reserve_timeout_seconds":600.0},"directory_mode":"0700"}','','2026-11-29T07:42:16.941335+00:00');
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
, salt BLOB, outcome TEXT CHECK (outcome IN ('landed', 'weak')), figures TEXT, event_at TEXT, erased_at TEXT);
INSERT INTO "requests" VALUES(1,'r0','ae05794d1b63ae31','{"id":"r0","subject":"Nobody 0","prompt":"{} comes from","target_new":"place 0","statement":"Nobody 0 comes from place 0."}','7e832c487189ae41be09089ec879c2245bcb79c9802789a4762f8fbd8807d924','2026-11-29T07:42:16.984684+00:00','applied',NULL,1,NULL,NULL,'{"loss":6.634843349456787,"steps":1,"converged":false,"clamped":false}',X'697F31C74E1EEBDC328885A321C7D1DC',NULL,NULL,NULL,NULL);
INSERT INTO "requests" VALUES(2,'r1','ea2fc117fddfeb94','{"id":"r1","subject":"Nobody 1","prompt":"{} comes from","target_new":"place 1","statement":"Nobody 1 comes from place 1."}','45b433ed18556efdfed252ace4ee7e65ae551442dd7eb0cc33e64f647d26450e','2026-11-29T07:42:16.985581+00:00','superseded',NULL,1,3,'r7','{"loss":6.582292079925537,"steps":1,"converged":false,"clamped":false}',X'C0C4D7091FA48788953B1820EA87EC2F',NULL,NULL,NULL,NULL);
INSERT INTO "requests" VALUES(3,'r2','7bbf1bb3eef2860a','{"id":"r2","subject":"Nobody 2","prompt":"{} comes from","target_new":"place 2","statement":"Nobody 2 comes from place 2."}','9ad8f211e092f64426b9dadd40baff6c068babfa572be000b2e542bfaa2f6964','2026-11-29T07:42:16.985914+00:00','applied',NULL,1,NULL,NULL,'{"loss":6.340790748596191,"steps":1,"converged":false,"clamped":false}',X'2AEAE90DC520FC069BFEA560EF7FE96D',NULL,NULL,NULL,NULL);
INSERT INTO "requests" VALUES(4,'r3','d5108f57d3389869','{"id":"r3","subject":"Nobody 3","prompt":"{} comes from","target_new":"place 3","statement":"Nobody 3 comes from place 3."}','701ea03cfe1156dcf1f58f6fcfcfcf6aa9e318e96efc83328f28bdb7bf527780','2026-11-29T07:42:17.196728+00:00','reverted',NULL,2,6,NULL,'{"loss":6.637848854064941,"steps":1,"converged":false,"clamped":false}',X'EEE00E80735CFF887D4D67458B8906B1',NULL,NULL,NULL,NULL);
INSERT INTO "requests" VALUES(5,'r4','3374180da5f2e8aa','{"id":"r4","subject":"Nobody 4","prompt":"{} comes from","target_new":"place 4","statement":"Nobody 4 comes from place 4."}','60242b951dc525fddf0b53aaa6b63b3c24f498de16e286709c0b414eae87dc55','2026-11-29T07:42:17.197176+00:00','reverted',NULL,2,4,NULL,'{"loss":7.087061405181885,"steps":1,"converged":false,"clamped":false}',X'C40F039041EEDE96283675CA072585BC',NULL,NULL,NULL,NULL);
INSERT INTO "requests" VALUES(6,'r5','8ca0196108d465e2','{"id":"r5","subject":"Nobody 5","prompt":"{} comes from","target_new":"place 5","statement":"Nobody 5 comes from place 5."}','0891ad08f046fd62be9fbda78afcd2d167c6c8a121f66bffaafeea049c5dd337','2026-11-29T07:42:17.197465+00:00','applied',NULL,2,NULL,NULL,'{"loss":6.70408821105957,"steps":1,"converged":false,"clamped":false}',X'6AD53FFBDAD94DE2EC5BF7284A70D69B',NULL,NULL,NULL,NULL);
INSERT INTO "requests" VALUES(7,'r6','efbc6242c6d9ad56','{"id":"r6","subject":"Nobody 6","prompt":"{} comes from","target_new":"place 6","statement":"Nobody 6 comes from place 6."}','483978c86efde972cc77bd983f68d6af71d9f5c1db9ef5b266679d0b810c49c6','2026-11-29T07:42:17.460626+00:00','applied',NULL,3,NULL,NULL,'{"loss":7.126995086669922,"steps":1,"converged":false,"clamped":false}',X'D061AC329512B7FB48F5E77928839DE6',NULL,NULL,NULL,NULL);
INSERT INTO "requests" VALUES(8,'r7','ea2fc117fddfeb94','{"id":"r7","subject":"Nobody 1","prompt":"{} comes from","target_new":"place 0","statement":"Nobody 1 comes from place 0."}','2c1aa21f2d0c9a4c99b46e1dddd40ae1ad8e355eaf4798cd01e4874a0ffb2864','2026-11-29T07:42:17.461124+00:00','applied',NULL,3,NULL,NULL,'{"loss":6.55948543548584,"steps":1,"converged":false,"clamped":false}',X'872ECCCB1AEF76432E840E1727E90364',NULL,NULL,NULL,NULL);
INSERT INTO "requests" VALUES(9,'r8','c7d1d19ae8a4b8b6','{"id":"r8","subject":"Nobody 8","prompt":"{} comes from","target_new":"place 1","statement":"Nobody 8 comes from place 1."}','885ab8582fc59e803e756b805907370a0b5c763e50beeba7ff59e9bb5d36a434','2026-11-29T07:42:17.461462+00:00','reverted',NULL,3,4,NULL,'{"loss":6.689858913421631,"steps":1,"converged":false,"clamped":false}',X'5C2FD304932A7A508579DF47575D01CF',NULL,NULL,NULL,NULL);
INSERT INTO "requests" VALUES(10,'r9','80a968e2f6e55a72','{"id":"r9","subject":"Nobody 9","prompt":"{} comes from","target_new":"place 2","statement":"Nobody 9 comes from place 2."}','bf08daf776071690037ad4e4e954214568dd4e8f3cca9254f931e16b66840617','2026-11-29T07:42:17.928957+00:00','applied',NULL,5,NULL,NULL,'{"loss":6.34765625,"steps":1,"converged":false,"clamped":false}',X'532A25593FFB2BA037FED2606845720A',NULL,NULL,NULL,NULL);
INSERT INTO "requests" VALUES(11,'r10','fa02efcd3d6c9989','{"id":"r10","subject":"Nobody 10","prompt":"{} comes from","target_new":"place 3","statement":"Nobody 10 comes from place 3."}','c0bfcdc4086d9d474779ee01eb39ad8e9459f7ded13b765253914c810b90ff97','2026-11-29T07:42:17.929405+00:00','applied',NULL,5,NULL,NULL,'{"loss":6.545990943908691,"steps":1,"converged":false,"clamped":false}',X'F8C9A0B16B7760A198EC75BBC879E83D',NULL,NULL,NULL,NULL);
INSERT INTO "requests" VALUES(12,'r11','0903580611b66a35','{"id":"r11","subject":"Nobody 11","prompt":"{} comes from","target_new":"place 4","statement":"Nobody 11 comes from place 4."}','8032b9b58e1ac30033812d7fb4c87d2831b83f72a59494167b8393f3c19fc8f4','2026-11-29T07:42:18.309784+00:00','accepted',NULL,NULL,NULL,NULL,NULL,X'E1CCF4E340B01AAFFC448CB05B7156C9',NULL,NULL,NULL,NULL);
INSERT INTO "requests" VALUES(13,'r12','ae05794d1b63ae31','{"id":"r12","subject":"Nobody 0","prompt":"{} comes from","target_new":"place 5","statement":"Nobody 0 comes from place 5."}','38058c093d684528f1bc9b104a4c2a1b2fcdc693dee5e5fa746560be3817280a','2026-11-29T07:42:18.310176+00:00','accepted',NULL,NULL,NULL,NULL,NULL,X'46D8C549C162575F56B9B61E5FD323EF',NULL,NULL,NULL,NULL);
CREATE TABLE retractions (
    number      INTEGER PRIMARY KEY,
    id          TEXT NOT NULL UNIQUE,
    retracts    TEXT NOT NULL,
    event_at    TEXT,
    accepted_at TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('waiting', 'done')),
    sequence    INTEGER REFERENCES batches (sequence),
    reason      TEXT
);
CREATE TABLE swaps (
    after_sequence INTEGER PRIMARY KEY,
    covariance  TEXT NOT NULL REFERENCES covariances (digest),
    edits       INTEGER NOT NULL,
    at          TEXT NOT NULL
);
INSERT INTO "swaps" VALUES(0,'369261524e1954aecd4bc07b253f3c9ffaca121fa9e51bf7fcea55a7f6f002b4',0,'2026-11-29T07:42:16.980193+00:00');
CREATE TABLE tags (
    name        TEXT PRIMARY KEY,
    sequence    INTEGER NOT NULL REFERENCES batches (sequence),
    at          TEXT NOT NULL
);
CREATE TABLE tombstones (
    seq         INTEGER PRIMARY KEY REFERENCES requests (seq),
    sequence    INTEGER REFERENCES batches (sequence),
    content     BLOB NOT NULL,
    reason      TEXT NOT NULL,
    at          TEXT NOT NULL
);
CREATE INDEX requests_by_state ON requests (state, seq);
CREATE INDEX requests_by_fact ON requests (fact_key, state);
CREATE INDEX fates_by_request ON fates (seq, number);
CREATE INDEX commits_by_version ON commits (version);
CREATE INDEX requests_by_application ON requests (applied_in) WHERE applied_in IS NOT NULL;
CREATE INDEX requests_by_outcome ON requests (outcome, seq) WHERE outcome IS NOT NULL;
CREATE INDEX fates_by_batch ON fates (sequence) WHERE sequence IS NOT NULL;
CREATE INDEX commits_by_edits ON commits (edits);
CREATE INDEX batches_by_kind ON batches (kind, sequence);
CREATE INDEX events_by_kind ON events (kind, number);
CREATE INDEX attempts_by_batch ON attempts (sequence, number);
CREATE INDEX retractions_by_state ON retractions (state, number);
CREATE INDEX retractions_by_request ON retractions (retracts);
CREATE UNIQUE INDEX chain_by_row ON chain (kind, ref);
CREATE TRIGGER requests_counted_in AFTER INSERT ON requests BEGIN
    INSERT INTO counters VALUES ('state.' || NEW.state, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1;
END;
CREATE TRIGGER requests_counted_on AFTER UPDATE OF state ON requests WHEN OLD.state <> NEW.state BEGIN
    UPDATE counters SET value = value - 1 WHERE name = 'state.' || OLD.state;
    INSERT INTO counters VALUES ('state.' || NEW.state, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1;
END;
CREATE TRIGGER outcomes_counted AFTER UPDATE OF outcome ON requests WHEN OLD.outcome IS NOT NEW.outcome BEGIN
    UPDATE counters SET value = value - 1 WHERE name = 'outcome.' || OLD.outcome;
    INSERT INTO counters SELECT 'outcome.' || NEW.outcome, 1 WHERE NEW.outcome IS NOT NULL
        ON CONFLICT (name) DO UPDATE SET value = value + 1;
END;
PRAGMA user_version = 2;
COMMIT;
