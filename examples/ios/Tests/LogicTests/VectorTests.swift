import Foundation
import LightningPruneLogic
import XCTest

final class VectorTests: XCTestCase {
  private var vectors: Vectors!

  override func setUpWithError() throws {
    vectors = try Vectors.load()
  }

  private func assertRefused<T>(_ what: String, tells: String = "", _ call: @autoclosure () throws -> T) {
    XCTAssertThrowsError(try call(), what) { error in
      let message = (error as? ModelError)?.message ?? ""
      XCTAssertFalse(message.isEmpty, "\(what): \(error)")
      XCTAssert(tells.isEmpty || message.contains(tells), "\(what): no word of \(tells) in \(message)")
    }
  }

  private func assertClose(_ expected: [Float], _ found: [Float], _ what: String) {
    XCTAssertEqual(expected.count, found.count, what)
    for (e, f) in zip(expected, found) {
      XCTAssertEqual(e, f, accuracy: 1e-6 * max(1, abs(e)), what)
    }
  }

  func testManifests() throws {
    for test in vectors.manifests {
      let bytes = Data(test.text.utf8)
      guard let holds = test.holds else {
        assertRefused(test.name, try Manifest(bytes))
        continue
      }
      let manifest = try Manifest(bytes)
      XCTAssertEqual(manifest.program.name, holds.program, test.name)
      XCTAssertEqual(manifest.program.sha256, holds.sha256, test.name)
      XCTAssertEqual(manifest.program.sizeBytes, holds.size_bytes, test.name)
      XCTAssertEqual(manifest.data.map(\.name), holds.data, test.name)
      XCTAssertEqual(manifest.labels, holds.labels, test.name)
      XCTAssertEqual(manifest.methods.mapValues { [$0.inputs.count, $0.outputs.count] }, holds.methods, test.name)
      let input = try manifest.method("forward").inputs[0]
      XCTAssertEqual(input.shape, holds.shape, test.name)
      XCTAssertEqual(input.dynamic, ranges(holds.dynamic), test.name)
      XCTAssertEqual(manifest.picture, try holds.picture.spec(), test.name)
      XCTAssertEqual(manifest.state.map(\.name), holds.state, test.name)
      let feeds = try manifest.method("forward").feeds.map { [FeedPart.name($0.input), .name($0.output), .number($0.first)] }
      XCTAssertEqual(feeds, holds.feeds, test.name)
      assertRefused(test.name, try manifest.method("no such method"))
    }
  }

  func testFiles() throws {
    let entry = try Manifest(Data(vectors.manifests[0].text.utf8)).program
    for test in vectors.files {
      let bytes = try XCTUnwrap(Data(base64Encoded: test.base64))
      for size in [7, 64, 100_000] {
        if test.same {
          try check(entry, bytes, piece: size)
        } else {
          assertRefused(test.name, try check(entry, bytes, piece: size))
        }
      }
    }
  }

  private func check(_ entry: FileEntry, _ bytes: Data, piece: Int) throws {
    var at = 0
    try entry.check {
      let part = bytes.subdata(in: at..<min(at + piece, bytes.count))
      at += part.count
      return part
    }
  }

  func testImages() throws {
    for test in vectors.images {
      let input = try ImageInput(test.input.spec)
      XCTAssertEqual(input.shape, test.shape)
      let image = try GrayImage(height: test.size[0], width: test.size[1], values: test.pixels)
      assertClose(test.values, input.values(image), "\(test.size)")
    }
    for test in vectors.unfit_inputs {
      assertRefused("\(test.spec)", try ImageInput(test.spec))
    }
  }

  func testPictures() throws {
    for test in vectors.pictures {
      let what = "\(test.size), \(test.rotation) degrees, \(test.picture)"
      let (height, width) = (test.size[0], test.size[1])
      let image = try ColorImage(height: height, width: width, pixels: test.pixels, rotation: test.rotation)
      let input = try ImageInput(test.input.spec, test.picture.spec())
      let place = test.placement
      let expected = Placement(top: place[0], left: place[1], height: place[2], width: place[3])
      XCTAssertEqual(input.placement(image), expected, what)
      assertClose(test.values, input.values(image), what)
      assertRefused(what, try ColorImage(height: height, width: width, pixels: test.pixels, rotation: 45))
      assertRefused(what, try ColorImage(height: height + 1, width: width, pixels: test.pixels))
    }
  }

  func testDrawings() {
    for test in vectors.drawings {
      var drawing = Drawing(size: test.size, radius: test.radius)
      for line in test.lines { drawing.line(fromX: line[0], fromY: line[1], toX: line[2], toY: line[3]) }
      XCTAssertEqual(drawing.isEmpty, test.lines.isEmpty)
      assertClose(test.pixels, drawing.image.values, "\(test.lines)")
      XCTAssertEqual(drawing.framed().width, test.side)
      assertClose(test.framed, drawing.framed().values, "\(test.lines), framed")
      drawing.clear()
      XCTAssertTrue(drawing.isEmpty)
    }
  }

  func testScores() throws {
    for test in vectors.scores {
      let scores = test.scores.map(\.value)
      if let expected = test.class {
        XCTAssertEqual(try Scores.argmax(scores), expected)
        assertClose(try XCTUnwrap(test.softmax), try Scores.softmax(scores), "\(scores)")
      } else {
        assertRefused("\(scores)", try Scores.softmax(scores))
      }
    }
  }

  func testAnswers() throws {
    for test in vectors.answers {
      let answer = { try Answer(output: test.output, spec: test.spec.spec, labels: test.labels) }
      if let expected = test.class {
        XCTAssertEqual(try answer().index, expected)
        XCTAssertEqual(try answer().label, test.label)
      } else {
        assertRefused("\(test)", try answer())
      }
    }
  }

  private func corners(_ area: Area) -> [Float] {
    [area.left, area.top, area.right, area.bottom].map { Float($0) }
  }

  func testReadings() throws {
    for test in vectors.readings {
      let what = "\(test.spec) at \(test.place)"
      let place = Placement(top: test.place[0], left: test.place[1], height: test.place[2], width: test.place[3])
      let read = {
        try Reading(
          output: test.output, spec: test.spec.spec, labels: test.labels, place: place, rows: 64, columns: 64)
      }
      guard test.boxes != nil || test.classes != nil else {
        assertRefused(what, try read())
        continue
      }
      switch try read() {
      case .boxes(let told):
        let expected = try XCTUnwrap(test.boxes)
        XCTAssertEqual(told.map(\.label), expected.map(\.label), what)
        XCTAssertEqual(told.map(\.index), expected.map(\.index), what)
        assertClose(expected.map(\.confidence), told.map(\.confidence), what)
        assertClose(expected.flatMap(\.area), told.flatMap { corners($0.area) }, what)
      case .regions(let rows, let columns, let classes, let area):
        XCTAssertEqual([rows, columns], test.size, what)
        XCTAssertEqual(classes, test.classes, what)
        assertClose(try XCTUnwrap(test.area), corners(area), what)
      case .classes:
        XCTFail(what)
      }
    }
  }

  /// The program of a case: its weights times all inputs, or the text that scripts/make_vectors.py describes.
  private func outputs(_ test: SessionCase, _ spec: MethodSpec, _ inputs: [[Float]]) -> [[Float]] {
    guard let weights = test.weights else {
      var scores = [Float](repeating: 0, count: spec.outputs[0].shape.last ?? 0)
      scores[(3 * Int(inputs[0].last ?? 0) + Int(inputs[1].last ?? 0)) % scores.count] = 1
      return [scores]
    }
    let all = inputs.flatMap { $0 }
    var row = 0
    return spec.outputs.map { output in
      (0..<output.shape.reduce(1, *)).map { _ in
        defer { row += 1 }
        return zip(weights[(row * all.count)..<((row + 1) * all.count)], all).map(*).reduce(0, +)
      }
    }
  }

  private func assertBusy(_ call: () throws -> Void) {
    assertRefused("another thread", try call())
  }

  func testSessions() throws {
    for test in vectors.sessions {
      let spec = test.spec.spec
      var (restarts, isFailing) = (0, false)
      var other: (() throws -> Void)?
      let session = try Session(spec, keeps: test.keeps, restart: { restarts += 1 }) { inputs, _ in
        if let other {
          let thread = Thread { self.assertBusy(other) }
          thread.start()
          while !thread.isFinished { usleep(100) }
        }
        if isFailing { throw ModelError("no memory") }
        return self.outputs(test, spec, inputs)
      }
      other = { try session.reset() }
      for event in test.events {
        let what = "\(event)"
        switch event.do {
        case "step":
          if let expected = event.gives {
            XCTAssertEqual(try session.step(event.inputs ?? []), expected.values, what)
          } else {
            assertRefused(what, try session.step(event.inputs ?? []))
          }
        case "fail":
          isFailing = true
          assertRefused(what, try session.step(event.inputs ?? []))
          isFailing = false
        case "reset":
          if event.refused == true {
            assertRefused(what, try session.reset(event.first ?? [:]))
          } else {
            try session.reset(event.first ?? [:])
          }
        case "state":
          XCTAssertEqual(try session.state(), try XCTUnwrap(event.is), what)
        default:
          var told: [Int] = []
          let write = {
            try session.generate(event.prompt ?? [], max: event.max ?? 0, stop: Set(event.stop ?? [])) { told.append($0) }
          }
          if let expected = event.gives {
            XCTAssertEqual(try write(), expected.tokens, what)
          } else {
            assertRefused(what, try write())
          }
          XCTAssertEqual(told, event.gives?.tokens ?? [], what)
        }
      }
      XCTAssertEqual(restarts, test.restarts)
    }
  }

  func testTimings() throws {
    for test in vectors.timings {
      guard let median = test.median else {
        assertRefused("\(test)", try Timing(test.milliseconds))
        continue
      }
      let timing = try Timing(test.milliseconds)
      XCTAssertEqual(timing.median, median, accuracy: 1e-12)
      XCTAssertEqual(timing.spread, try XCTUnwrap(test.spread), accuracy: 1e-12)
      XCTAssertEqual(timing.fastest, try XCTUnwrap(test.fastest), accuracy: 1e-12)
      XCTAssertEqual(timing.quantile(0.9), try XCTUnwrap(test.p90), accuracy: 1e-12)
    }
  }

  func testFramings() throws {
    for test in vectors.framings {
      let what = "frames of \(test.window) every \(test.hop)"
      guard let expected = test.frames else {
        assertRefused(what, try Framing(window: test.window, hop: test.hop))
        continue
      }
      let samples = try XCTUnwrap(test.samples)
      var framing = try Framing(window: test.window, hop: test.hop)
      for _ in 0..<2 {
        var start = 0
        var frames: [[Float]] = []
        for (size, done) in zip(try XCTUnwrap(test.sizes), try XCTUnwrap(test.done)) {
          frames += framing.push(Array(samples[start..<start + size]))
          start += size
          XCTAssertEqual(frames.count, done, what)
        }
        assertClose(expected, frames.flatMap { $0 }, what)
        framing.reset()
      }
      assertClose(expected, framing.push(samples.map { Float($0) / 32768 }).flatMap { $0 }, what)
    }
  }

  func testMeasuring() throws {
    var now: UInt64 = 0
    var runs: UInt64 = 0
    let timing = try Timing.measure(rounds: 3, warmUp: 2, clock: { now }) {
      runs += 1
      now += 1_000_000 * runs
    }
    XCTAssertEqual(runs, 5)
    XCTAssertEqual(timing.runs, 3)
    XCTAssertEqual(timing.median, 4, accuracy: 1e-12)
    XCTAssertEqual(timing.fastest, 3, accuracy: 1e-12)
  }

  func testProbePlans() throws {
    for test in vectors.probe_plans {
      let bytes = Data(test.text.utf8)
      guard let holds = test.holds else {
        assertRefused(test.name, tells: test.tells ?? "", try ProbePlan(bytes))
        continue
      }
      let plan = try ProbePlan(bytes)
      XCTAssertEqual(plan.digest, holds.digest)
      XCTAssertEqual(plan.name, holds.name)
      XCTAssertEqual([plan.threads, plan.passes, plan.rounds], [holds.threads, holds.passes, holds.rounds])
      XCTAssertEqual(plan.files, holds.files)
      XCTAssertEqual(plan.turns.map { $0.map(\.name) }, holds.turns)
      let programs = plan.programs.map { program in
        ProbeProgramCase(
          name: program.name, file: program.file, method: program.method, shapes: program.inputs.map(\.shape),
          dtypes: program.inputs.map(\.dtype))
      }
      XCTAssertEqual(programs, holds.programs)
    }
  }

  func testProbeRuns() throws {
    let plan = try ProbePlan(Data(vectors.probe_plans[0].text.utf8))
    for test in vectors.probe_runs {
      let record = Record(costs: test.costs, failing: test.failing)
      var told = [0, 0]
      let results = try ProbeRun(plan, tick: test.tick, clock: { record.now }).results(
        device: "a \"phone\"\t\u{1F642}", threads: 1, clockName: "thread", progress: { told = [$0, $1] }
      ) { program in
        record.calls.append("load \(program.name)")
        if test.missing.contains(program.name) { throw ModelError("\(program.name) fails") }
        return RecordedProgram(name: program.name, record: record)
      }
      let expected = zip(test.calls, test.counts).flatMap { Array(repeating: $0, count: $1) }
      XCTAssertEqual(record.calls, expected)
      XCTAssertEqual(try JSONDecoder().decode(ProbeResults.self, from: Data(test.results.utf8)), results)
      XCTAssertEqual(try JSONDecoder().decode(ProbeResults.self, from: results.json()), results)
      XCTAssertEqual(told, [plan.passes * plan.turns.count, plan.passes * plan.turns.count])
    }
    var now: UInt64 = 0
    XCTAssertEqual(
      ProbeRun.tick {
        now += 1
        return now / 3 * 3
      }, 3)
  }
}

/// What a probe did to its programs, and a clock that goes on by what a run takes.
private final class Record {
  let costs: [String: UInt64]
  let failing: [String]
  var calls: [String] = []
  var now: UInt64 = 0

  init(costs: [String: UInt64], failing: [String]) {
    self.costs = costs
    self.failing = failing
  }
}

private struct RecordedProgram: LoadedProgram {
  let name: String
  let record: Record

  func run() throws {
    record.calls.append(name)
    if record.failing.contains(name) { throw ModelError("\(name) fails") }
    record.now += record.costs[name] ?? 0
  }

  func close() {
    record.calls.append("close \(name)")
  }
}
