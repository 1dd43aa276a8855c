import Foundation

/// A method of a file that is to be timed in the turn of this number.
public struct ProbeProgram: Equatable, Sendable {
  public let name: String
  public let turn: Int
  public let file: String
  public let method: String
  public let inputs: [TensorSpec]
}

/// What a device is to time: the plan.json that lightning_prune's export_probe wrote. What follows from the times is worked
/// out in Python, so that the rest of the plan is not read here.
public struct ProbePlan: Equatable, Sendable {
  public static let format = "lightning_prune.probe_plan"
  public static let version = 1
  private static let whole = "whole"
  private static let most = 1_000_000
  /// Keys of whole numbers.
  private static let counted: Set<String> = ["version", "threads", "passes", "rounds", "turn", "shape"]

  /// The sha256 of the plan's bytes, by which results name it.
  public let digest: String
  public let name: String
  public let threads: Int
  public let passes: Int
  public let rounds: Int
  /// Name -> sha256.
  public let files: [String: String]
  public let programs: [ProbeProgram]

  /// The programs of each turn, in the order of the first of each.
  public var turns: [[ProbeProgram]] {
    var places: [Int: Int] = [:]
    var turns: [[ProbeProgram]] = []
    for program in programs {
      if let place = places[program.turn] {
        turns[place].append(program)
      } else {
        places[program.turn] = turns.count
        turns.append([program])
      }
    }
    return turns
  }

  /// Reads the bytes of a plan.json.
  ///
  /// - Throws: `ModelError` where it is malformed or newer.
  public init(_ bytes: Data) throws {
    let head = try ProbePlan.decode(HeadFile.self, bytes)
    guard head.format == ProbePlan.format else { throw ModelError("this is no plan of a probe: copy the folder again") }
    try ProbePlan.checkWhole(bytes)
    guard head.version == ProbePlan.version else {
      throw ModelError("the plan is of version \(head.version), and this app reads \(ProbePlan.version): update the app")
    }
    let file = try ProbePlan.decode(PlanFile.self, bytes)
    var hash = Sha256()
    hash.update(bytes)
    digest = hash.hexadecimal()
    name = file.name
    (threads, passes, rounds, files) = (file.threads, file.passes, file.rounds, file.files)
    programs = try file.programs.map { program in
      guard let turn = program.turn.value, (0...ProbePlan.most).contains(turn) else {
        throw ModelError("the plan is incomplete: \"turn\" of \(program.name) is no number up to \(ProbePlan.most)")
      }
      let inputs = try program.inputs.map { try ProbePlan.spec($0, program.name) }
      return ProbeProgram(
        name: program.name, turn: turn, file: program.file, method: program.method, inputs: inputs)
    }
    guard (0...ProbePlan.most).contains(threads), (1...ProbePlan.most).contains(passes),
      (1...ProbePlan.most).contains(rounds), passes * rounds <= ProbePlan.most
    else { throw ModelError("the plan asks for \(threads) threads, \(passes) passes of \(rounds) rounds") }
    for name in files.keys.sorted() + programs.map(\.file) {
      guard files[name] != nil, !name.contains("/"), !name.contains("\\") else {
        throw ModelError("the plan names a file \"\(name)\" that cannot be beside it")
      }
    }
    guard Set(programs.map(\.name)).count == programs.count else {
      throw ModelError("two programs of the plan have one name")
    }
    let wholes = file.programs.filter { $0.cell == ProbePlan.whole }.count
    guard wholes == file.anchors.count, wholes >= 2 else {
      throw ModelError("the plan has \(wholes) whole programs, two at least, and the widths of \(file.anchors.count)")
    }
  }

  private static func decode<T: Decodable>(_ type: T.Type, _ bytes: Data) throws -> T {
    do {
      return try JSONDecoder().decode(type, from: bytes)
    } catch {
      throw ModelError("no plan of a probe, or an incomplete one: \(error)")
    }
  }

  /// Refuses 2.0 where 2 is meant: Foundation's decoder takes it for an Int, the readers in Kotlin and Python refuse it.
  ///
  /// The bytes are JSON, so that a point or an "e" outside of texts is part of a number, or of true and false.
  private static func checkWhole(_ bytes: Data) throws {
    var key = ""
    var text: [UInt8] = []
    var isQuoted = false
    var isEscaped = false
    for byte in bytes {
      if isQuoted {
        isQuoted = isEscaped || byte != UInt8(ascii: "\"")
        isEscaped = !isEscaped && byte == UInt8(ascii: "\\")
        text.append(byte)
      } else if byte == UInt8(ascii: "\"") {
        isQuoted = true
        text = []
      } else if byte == UInt8(ascii: ":") {
        key = String(decoding: text.dropLast(), as: UTF8.self)
      } else if byte == UInt8(ascii: ".") || byte == UInt8(ascii: "e") || byte == UInt8(ascii: "E") {
        guard !counted.contains(key) else {
          throw ModelError("the plan is incomplete: \"\(key)\" is no whole number")
        }
      }
    }
  }

  private static func spec(_ file: InputFile, _ name: String) throws -> TensorSpec {
    var count = 1
    for size in file.shape {
      let (product, overflow) = count.multipliedReportingOverflow(by: size)
      guard size >= 0, !overflow, product <= Int(Int32.max) else { throw ModelError("shape \(file.shape) of \(name)") }
      count = product
    }
    return TensorSpec(name: "input", shape: file.shape, dtype: file.dtype)
  }
}

/// What a device found; its JSON is read by lightning_prune's ProbeResults.
public struct ProbeResults: Codable, Equatable, Sendable {
  public static let format = "lightning_prune.probe_results"

  public let format: String
  public let version: Int
  public let plan: String
  public let device: String
  public let runtime: String
  public let threads: Int
  public let clock: String
  public let tick: Int
  public let nanoseconds: [String: [Int]]
  public let failed: [String: String]

  public func json() throws -> Data {
    let encoder = JSONEncoder()
    encoder.outputFormatting = .sortedKeys
    return try encoder.encode(self)
  }
}

/// A program of a probe in the memory of the device, with weights of its own.
public protocol LoadedProgram {
  /// Runs it once.
  func run() throws
  /// Lets it go.
  func close()
}

/// Runs a plan: in each pass the programs of each turn are loaded, run in their order, and let go. In each round a turn is
/// run eight times until its time settles, and four times that count, as in lightning_prune's worker; in a turn a short
/// program is repeated until it takes twenty ticks of the clock. A program that cannot be loaded or run has no times.
public struct ProbeRun {
  private static let (settling, measured) = (8, 4)
  private let plan: ProbePlan
  private let tick: Int
  private let clock: () -> UInt64

  /// - Parameters:
  ///   - tick: nanoseconds between two ticks of the clock.
  ///   - clock: gives nanoseconds.
  public init(_ plan: ProbePlan, tick: Int, clock: @escaping () -> UInt64) {
    self.plan = plan
    self.tick = tick
    self.clock = clock
  }

  /// - Parameters:
  ///   - threads: of the runtime; 0 for as many as it takes by itself.
  ///   - clockName: "thread" or "wall".
  ///   - progress: is told how many turns are over, of how many in all passes.
  public func results(
    device: String, threads: Int, clockName: String, progress: (Int, Int) -> Void = { _, _ in },
    load: (ProbeProgram) throws -> LoadedProgram
  ) throws -> ProbeResults {
    let turns = plan.turns
    var nanoseconds: [String: [Int]] = [:]
    var failed: [String: String] = [:]
    for pass in 0..<plan.passes {
      for (place, turn) in turns.enumerated() {
        var loaded: [LoadedProgram] = []
        defer { for program in loaded { program.close() } }
        var running: [(name: String, program: LoadedProgram)] = []
        for program in turn where failed[program.name] == nil {
          do {
            let own = try load(program)
            loaded.append(own)
            try own.run()
            running.append((program.name, own))
          } catch {
            failed[program.name] = error.localizedDescription
            nanoseconds[program.name] = nil
          }
        }
        try measure(running) { nanoseconds[$0, default: []].append($1) }
        progress(pass * turns.count + place + 1, plan.passes * turns.count)
      }
    }
    return ProbeResults(
      format: ProbeResults.format, version: 1, plan: plan.digest, device: device, runtime: "", threads: threads,
      clock: clockName, tick: tick, nanoseconds: nanoseconds, failed: failed)
  }

  private func measure(_ running: [(name: String, program: LoadedProgram)], told: (String, Int) -> Void) throws {
    let counts = try running.map { _, program in
      let start = clock()
      try program.run()
      let taken = max(1, Int(clock() - start))
      return (20 * tick + taken - 1) / taken
    }
    for _ in 0..<plan.rounds {
      for again in 0..<(ProbeRun.settling + ProbeRun.measured) {
        for (count, (name, program)) in zip(counts, running) {
          let start = clock()
          for _ in 0..<count { try program.run() }
          let taken = max(1, Int(clock() - start) / count)
          if again >= ProbeRun.settling { told(name, taken) }
        }
      }
    }
  }

  /// Nanoseconds between two ticks of a clock that goes on while this waits for it.
  public static func tick(_ clock: () -> UInt64) -> Int {
    var shortest = UInt64.max
    for _ in 0..<5 {
      let first = clock()
      var last = first
      while last == first { last = clock() }
      shortest = min(shortest, last - first)
    }
    return Int(shortest)
  }
}

// The keys of the file, as they are written there.
private struct HeadFile: Decodable {
  let format: String
  let version: Int
}

private struct PlanFile: Decodable {
  let name: String
  let threads: Int
  let passes: Int
  let rounds: Int
  let files: [String: String]
  let programs: [ProgramFile]
  let anchors: [Unread]
}

/// Refused where what holds it can be named: of a number that is no Int the decoder says only that the JSON is not valid.
private struct Whole: Decodable {
  let value: Int?

  init(from decoder: Decoder) throws {
    value = try? decoder.singleValueContainer().decode(Int.self)
  }
}

/// What is counted alone.
private struct Unread: Decodable {
  init(from decoder: Decoder) throws {}
}

private struct ProgramFile: Decodable {
  let name: String
  let turn: Whole
  let file: String
  let method: String
  let cell: String
  let inputs: [InputFile]
}

private struct InputFile: Decodable {
  let shape: [Int]
  let dtype: String
}
