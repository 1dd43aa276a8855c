import Dispatch
import ExecuTorch
import Foundation
import LightningPruneLogic

/// Times what lightning_prune's export_probe wrote. It takes minutes: not for the main thread.
public enum ProbeRunner {
  /// Runs the plan in a folder of the device.
  ///
  /// ExecuTorch's Swift interface has no setting for threads: the runtime takes as many as it chooses, whatever the plan
  /// says, and the clock is the wall's.
  ///
  /// - Throws: `ModelError` where the plan or a file is not what was exported.
  public static func run(_ folder: URL, device: String, progress: (Int, Int) -> Void = { _, _ in }) throws -> ProbeResults {
    guard let bytes = try? Data(contentsOf: folder.appendingPathComponent("plan.json")) else {
      throw ModelError("\(folder.path) has no plan.json: copy the folder of export_probe there")
    }
    let plan = try ProbePlan(bytes)
    for (name, sha256) in plan.files.sorted(by: { $0.key < $1.key }) {
      let file = folder.appendingPathComponent(name)
      let size = (try? file.resourceValues(forKeys: [.fileSizeKey]).fileSize) ?? 0
      try ProgramRunner.check(FileEntry(name, sha256, size), file)
    }
    let clock = { DispatchTime.now().uptimeNanoseconds }
    let pool = Pool(plan)
    return try ProbeRun(plan, tick: ProbeRun.tick(clock), clock: clock).results(
      device: device, threads: 0, clockName: "wall", progress: progress
    ) { program in
      try Loaded(folder.appendingPathComponent(program.file), program, pool)
    }
  }

  /// A module for each program, even where two are the same method: alike layers of a network have weights of their own,
  /// and the second must not find those of the first in a cache.
  private final class Loaded: LoadedProgram {
    private let program: ProbeProgram
    private let pool: Pool
    private let inputs: [ValueConvertible]
    private var module: Module?

    init(_ file: URL, _ program: ProbeProgram, _ pool: Pool) throws {
      self.program = program
      self.pool = pool
      inputs = try program.inputs.map { try pool.tensor($0) }
      module = Module(filePath: file.path, dataFilePaths: [], loadMode: .mmap)
    }

    func run() throws {
      guard let module else { throw ModelError("\(program.name) is closed") }
      do {
        _ = try module.execute(program.method, inputs)
      } catch {
        throw ModelError("\(program.name) cannot be run: \(error.localizedDescription)")
      }
    }

    func close() {
      module = nil
    }
  }

  /// What programs take, all of it in one place for each type: inside of a network a layer takes what was just written.
  /// Floats are random, whole numbers are zeros. The layout of random numbers does not matter. Tensors of it do not keep
  /// it: who holds them holds the pool.
  private final class Pool {
    private let floats: UnsafeMutableBufferPointer<Float>
    private let longs: UnsafeMutableBufferPointer<Int64>
    private let bytes: UnsafeMutableBufferPointer<UInt8>

    init(_ plan: ProbePlan) {
      let inputs = plan.programs.flatMap(\.inputs)
      func most(_ dtype: String) -> Int {
        inputs.filter { $0.dtype == dtype }.map { $0.shape.reduce(1, *) }.max() ?? 0
      }
      floats = .allocate(capacity: most("float32"))
      longs = .allocate(capacity: most("int64"))
      bytes = .allocate(capacity: most("uint8"))
      _ = floats.initialize(from: (0..<floats.count).lazy.map { _ in Float.random(in: -1...1) })
      longs.initialize(repeating: 0)
      bytes.initialize(repeating: 0)
    }

    deinit {
      floats.deallocate()
      longs.deallocate()
      bytes.deallocate()
    }

    func tensor(_ spec: TensorSpec) throws -> ValueConvertible {
      switch spec.dtype {
      case "float32":
        return try Tensor<Float>(bytesNoCopy: start(floats, spec), shape: spec.shape)
      case "int64":
        return try Tensor<Int64>(bytesNoCopy: start(longs, spec), shape: spec.shape)
      case "uint8":
        return try Tensor<UInt8>(bytesNoCopy: start(bytes, spec), shape: spec.shape)
      default:
        throw ModelError("input \(spec): this runner makes float32, uint8 and int64")
      }
    }

    private func start<T>(_ values: UnsafeMutableBufferPointer<T>, _ spec: TensorSpec) throws -> UnsafeMutableRawPointer {
      guard let start = values.baseAddress, !spec.shape.contains(0) else {
        throw ModelError("input \(spec): got no values")
      }
      return UnsafeMutableRawPointer(start)
    }
  }
}
