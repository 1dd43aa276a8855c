import Foundation

/// A method of a file that is to be timed.
public struct ProbeProgram: Equatable, Sendable {
  public let name: String
  public let file: String
  public let method: String
  public let inputs: [TensorSpec]
}

/// What a device is to time: the plan.json that lightning_prune's export_probe wrote. What follows from the times is worked
/// out in Python, so that the rest of the plan is not read here.
public struct ProbePlan: Equatable, Sendable {
  public static let format = "lightning_prune.probe_plan"
  public static let version = 1
  private static let most = 1 << 20

  /// The sha256 of the plan's bytes, by which results name it.
  public let digest: String
  public let name: String
  public let threads: Int
  public let passes: Int
  public let rounds: Int
  /// Name -> sha256.
  public let files: [String: String]
  public let programs: [ProbeProgram]

  /// The files in the order in which they are loaded.
  public var order: [String] {
    var names: [String] = []
    for program in programs where !names.contains(program.file) { names.append(program.file) }
    return names
  }

  /// How often a program's turn comes, all in all.
  public var turns: Int { passes * rounds * programs.count }

  /// Reads the bytes of a plan.json.
  ///
  /// - Throws: `ModelError` where it is malformed or newer.
  public init(_ bytes: Data) throws {
    let head = try ProbePlan.decode(HeadFile.self, bytes)
    guard head.format == ProbePlan.format else { throw ModelError("this is no plan of a probe: copy the folder again") }
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
      let inputs = try program.inputs.map { try ProbePlan.spec($0, program.name) }
      return ProbeProgram(name: program.name, file: program.file, method: program.method, inputs: inputs)
    }
    guard (0...ProbePlan.most).contains(threads), (1...ProbePlan.most).contains(passes),
      (1...ProbePlan.most).contains(rounds)
    else { throw ModelError("the plan asks for \(threads) threads, \(passes) passes, \(rounds) rounds") }
    for name in files.keys.sorted() + programs.map(\.file) {
      guard files[name] != nil, !name.contains("/"), !name.contains("\\") else {
        throw ModelError("the plan names a file \"\(name)\" that cannot be beside it")
      }
    }
  }

  private static func decode<T: Decodable>(_ type: T.Type, _ bytes: Data) throws -> T {
    do {
      return try JSONDecoder().decode(type, from: bytes)
    } catch {
      throw ModelError("no plan of a probe, or an incomplete one: \(error)")
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

/// A file of a probe in the memory of the device.
public protocol ProbeFile {
  /// Runs a program of it.
  func run(_ program: ProbeProgram) throws
  /// Lets it go.
  func close()
}

/// Runs a plan in interleaved rounds: in each pass every file is loaded, its programs take turns, beginning one further
/// in each round, and it is let go. Of two runs in a row the second counts; a short one is repeated until it takes twenty
/// ticks of the clock. A program that fails has no times.
public struct ProbeRun {
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
  ///   - progress: is told how many turns were taken.
  public func results(
    device: String, threads: Int, clockName: String, progress: (Int) -> Void = { _ in },
    load: (String) throws -> ProbeFile
  ) throws -> ProbeResults {
    var nanoseconds: [String: [Int]] = [:]
    var failed: [String: String] = [:]
    var turns = 0
    for _ in 0..<plan.passes {
      for name in plan.order {
        let file = try load(name)
        defer { file.close() }
        var order: [ProbeProgram] = []
        var repeats: [Int] = []
        for program in plan.programs where program.file == name && failed[program.name] == nil {
          do {
            try file.run(program)
            let start = clock()
            try file.run(program)
            let taken = max(1, Int(clock() - start))
            order.append(program)
            repeats.append((20 * tick + taken - 1) / taken)
          } catch {
            failed[program.name] = error.localizedDescription
            nanoseconds[program.name] = nil
          }
        }
        for round in 0..<plan.rounds {
          for place in order.indices {
            let number = (round + place) % order.count
            let taken = try turn(file, order[number], repeats[number])
            nanoseconds[order[number].name, default: []].append(taken)
          }
          turns += order.count
          progress(turns)
        }
      }
    }
    return ProbeResults(
      format: ProbeResults.format, version: 1, plan: plan.digest, device: device, runtime: "", threads: threads,
      clock: clockName, tick: tick, nanoseconds: nanoseconds, failed: failed)
  }

  private func turn(_ file: ProbeFile, _ program: ProbeProgram, _ count: Int) throws -> Int {
    try file.run(program)
    let start = clock()
    for _ in 0..<count { try file.run(program) }
    return max(1, Int(clock() - start) / count)
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
}

private struct ProgramFile: Decodable {
  let name: String
  let file: String
  let method: String
  let inputs: [InputFile]
}

private struct InputFile: Decodable {
  let shape: [Int]
  let dtype: String
}
